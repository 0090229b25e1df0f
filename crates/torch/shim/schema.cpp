// What a module's method takes and returns, and what it changes, read off its schema and its graph.

#include <torch/csrc/jit/frontend/resolver.h>
#include <torch/csrc/jit/ir/alias_analysis.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/serialization/export.h>

#include <functional>
#include <set>
#include <sstream>

#include "internal.h"

namespace jit = torch::jit;

namespace {

std::string json(const std::string& text) {
  std::ostringstream out;
  out << '"';
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out << '\\' << c;
    } else if (byte < 0x20) {
      out << "\\u00" << "0123456789abcdef"[byte >> 4] << "0123456789abcdef"[byte & 15];
    } else {
      out << c;
    }
  }
  out << '"';
  return out.str();
}

std::string json(const std::vector<std::string>& texts) {
  std::string out = "[";
  for (const auto& text : texts) out += (out.size() > 1 ? "," : "") + json(text);
  return out + "]";
}

bool is_dict_of_tensors(const c10::TypePtr& type) {
  const auto dict = type->cast<c10::DictType>();
  return dict && dict->getKeyType()->kind() == c10::TypeKind::StringType &&
      dict->getValueType()->kind() == c10::TypeKind::TensorType;
}

std::string argument_kind(const c10::TypePtr& type) {
  switch (type->kind()) {
    case c10::TypeKind::TensorType:
      return "tensor";
    case c10::TypeKind::IntType:
      return "int";
    case c10::TypeKind::FloatType:
      return "float";
    case c10::TypeKind::BoolType:
      return "bool";
    case c10::TypeKind::StringType:
      return "str";
    case c10::TypeKind::ListType: {
      const auto element = type->expectRef<c10::ListType>().getElementType()->kind();
      if (element == c10::TypeKind::TensorType) return "tensors";
      if (element == c10::TypeKind::StringType) return "strings";
      break;
    }
    default:
      if (is_dict_of_tensors(type)) return "dict";
  }
  return "other";
}

void each_node(jit::Block* block, const std::function<void(jit::Node*)>& visit) {
  for (auto* node : block->nodes()) {
    visit(node);
    for (auto* inner : node->blocks()) each_node(inner, visit);
  }
}

// The constant keys by which the code reads or writes a dict, in the order of the code.
std::vector<std::string> constant_keys(jit::Graph& graph, const jit::Value* dict, const char* operation) {
  std::vector<std::string> keys;
  const auto symbol = c10::Symbol::fromQualString(operation);
  each_node(graph.block(), [&](jit::Node* node) {
    if (node->kind() != symbol || node->inputs().size() < 2 || node->input(0) != dict) return;
    const auto key = jit::toIValue(node->input(1));
    if (key && key->isString() && std::find(keys.begin(), keys.end(), key->toStringRef()) == keys.end()) {
      keys.push_back(key->toStringRef());
    }
  });
  return keys;
}

std::vector<std::string> built_keys(jit::Graph& graph, const jit::Value* dict) {
  std::vector<std::string> keys;
  if (dict->node()->kind() == c10::prim::DictConstruct) {
    const auto inputs = dict->node()->inputs();
    for (size_t i = 0; i + 1 < inputs.size(); i += 2) {
      const auto key = jit::toIValue(inputs[i]);
      if (key && key->isString()) keys.push_back(key->toStringRef());
    }
  }
  for (auto& key : constant_keys(graph, dict, "aten::_set_item")) {
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
  }
  return keys;
}

// `value` is the graph's value of that type where it is known, to look for keys.
std::string return_kind(jit::Graph& graph, const c10::TypePtr& type, const jit::Value* value) {
  switch (type->kind()) {
    case c10::TypeKind::TensorType:
      return R"({"kind":"tensor"})";
    case c10::TypeKind::AnyType:
      return R"({"kind":"unknown"})";
    case c10::TypeKind::OptionalType:
      return return_kind(graph, type->expectRef<c10::OptionalType>().getElementType(), nullptr);
    case c10::TypeKind::ListType: {
      const auto element = type->expectRef<c10::ListType>().getElementType();
      if (element->kind() == c10::TypeKind::StringType) return R"({"kind":"strings"})";
      return R"({"kind":"list","element":)" + return_kind(graph, element, nullptr) + "}";
    }
    case c10::TypeKind::TupleType: {
      const auto& tuple = type->expectRef<c10::TupleType>();
      const bool built = value != nullptr && value->node()->kind() == c10::prim::TupleConstruct;
      std::string out = R"({"kind":"tuple","fields":[)";
      for (size_t i = 0; i < tuple.elements().size(); i++) {
        const auto* inner = built ? value->node()->input(i) : nullptr;
        const auto name = tuple.schema() ? json(tuple.schema()->arguments().at(i).name()) : "null";
        out += (i > 0 ? ",[" : "[") + name + "," + return_kind(graph, tuple.elements()[i], inner) + "]";
      }
      return out + "]}";
    }
    case c10::TypeKind::DictType: {
      const auto& dict = type->expectRef<c10::DictType>();
      const auto element = return_kind(graph, dict.getValueType(), nullptr);
      if (dict.getKeyType()->kind() == c10::TypeKind::StringType && element.find("\"other\"") == std::string::npos) {
        // Of a dict of tensors only: what is below another value has names of its own.
        const bool known = value != nullptr && dict.getValueType()->kind() == c10::TypeKind::TensorType;
        const auto keys = known ? built_keys(graph, value) : std::vector<std::string>{};
        return R"({"kind":"dict","keys":)" + json(keys) + "}";
      }
      break;
    }
    default:
      break;
  }
  return R"({"kind":"other","type":)" + json(type->repr_str()) + "}";
}

std::shared_ptr<jit::Graph> inlined(const sc_module* module) {
  auto graph = module->entry.graph()->copy();
  jit::Inline(*graph);
  return graph;
}

// What a graph changes of what is not its own.
struct Writes {
  bool inputs = false;
  std::string attribute; // or the operation that changes one; empty where none does
};

// Operators that write to running statistics although their schemas do not say so: positions of
// running_mean, running_var and of the switch.
bool hides_a_write(const jit::Node* node) {
  static const std::set<std::string> operators = {
      "aten::batch_norm",        "aten::instance_norm",    "aten::native_batch_norm", "aten::_batch_norm_impl_index",
      "aten::cudnn_batch_norm", "aten::miopen_batch_norm", "aten::_native_batch_norm_legit"};
  if (operators.count(node->kind().toQualString()) == 0 || node->inputs().size() < 6) return false;
  if (node->input(3)->type()->kind() == c10::TypeKind::NoneType) return false;
  const auto on = jit::toIValue(node->input(5));
  return !(on && on->isBool() && !on->toBool());
}

bool may_hold_a_tensor(const jit::Value* value) {
  const auto kind = value->type()->kind();
  return kind == c10::TypeKind::TensorType || kind == c10::TypeKind::ListType || kind == c10::TypeKind::DictType ||
      kind == c10::TypeKind::TupleType || kind == c10::TypeKind::OptionalType;
}

// What the node writes to, as its schema says. An operator whose library states no schema might write
// anywhere, as far as libtorch knows; one that does write has to state so.
std::vector<jit::Value*> written(jit::Node* node) {
  std::vector<jit::Value*> values;
  if (hides_a_write(node)) values = {node->input(3), node->input(4)};
  const auto* schema = node->maybeSchema();
  if (schema == nullptr || !schema->is_mutable()) return values;
  for (size_t i = 0; i < schema->arguments().size() && i < node->inputs().size(); i++) {
    const auto* alias = schema->arguments()[i].alias_info();
    // Waiting for a future counts as a write to it, but changes nothing that is in it.
    if (alias != nullptr && alias->isWrite() && may_hold_a_tensor(node->input(i))) values.push_back(node->input(i));
  }
  return values;
}

// An object made in a run may be changed there; what else is changed was there before.
bool is_made_here(const jit::Value* object) { return object->node()->kind() == c10::prim::CreateObject; }

// A class of C++ behind an attribute: its methods may do anything.
bool calls_foreign_class(const jit::Node* node) {
  if (node->kind() != c10::prim::CallMethod) return false;
  const auto type = node->input(0)->type()->cast<c10::ClassType>();
  return type && !type->is_module() && node->input(0)->node()->kind() == c10::prim::GetAttr;
}

// A fork keeps its body as an attribute, not as a block.
std::shared_ptr<jit::Graph> forked_body(const jit::Node* node) {
  if (node->kind() != c10::prim::fork && node->kind() != c10::prim::awaitable) return nullptr;
  auto body = node->g(c10::attr::Subgraph)->copy();
  jit::Inline(*body);
  return body;
}

// `forked`: what a fork is given belongs to whoever forked, and counts as an attribute.
void find_writes(const std::shared_ptr<jit::Graph>& graph, bool forked, Writes& found) {
  jit::AliasDb aliases(graph);
  std::vector<jit::Value*> owned;
  std::vector<jit::Value*> given;
  for (auto* input : graph->inputs()) {
    if (may_hold_a_tensor(input)) (forked ? owned : given).push_back(input);
  }
  each_node(graph->block(), [&](jit::Node* node) {
    const bool kept = node->kind() == c10::prim::GetAttr || node->kind() == c10::prim::Constant;
    if (kept && may_hold_a_tensor(node->output())) owned.push_back(node->output());
  });
  each_node(graph->block(), [&](jit::Node* node) {
    if (node->kind() == c10::prim::SetAttr && !is_made_here(node->input(0))) found.attribute = node->s(c10::attr::name);
    if (calls_foreign_class(node)) found.attribute = node->s(c10::attr::name);
    for (auto* value : written(node)) {
      if (!owned.empty() && aliases.mayContainAlias(value, owned)) found.attribute = node->kind().toQualString();
      if (!given.empty() && aliases.mayContainAlias(value, given)) found.inputs = true;
    }
    if (const auto body = forked_body(node)) find_writes(body, true, found);
  });
}

} // namespace

int sc_schema(const sc_module* module, char** schema, char** error) {
  return sc_try(error, [&] {
    const auto graph = inlined(module);
    const auto& arguments = module->entry.function().getSchema().arguments();
    std::string out = R"({"arguments":[)";
    for (size_t i = 1; i < arguments.size(); i++) {
      auto type = arguments[i].type();
      bool optional = arguments[i].default_value().has_value();
      if (const auto maybe = type->cast<c10::OptionalType>()) {
        type = maybe->getElementType();
        optional = true;
      }
      const auto kind = argument_kind(type);
      std::vector<std::string> keys;
      if (kind == "dict" && i < graph->inputs().size()) {
        keys = constant_keys(*graph, graph->inputs()[i], "aten::__getitem__");
      }
      out += std::string(i > 1 ? "," : "") + R"({"name":)" + json(arguments[i].name()) + R"(,"kind":)" + json(kind) +
          R"(,"type":)" + json(type->repr_str()) + R"(,"optional":)" + (optional ? "true" : "false") + R"(,"keys":)" +
          json(keys) + "}";
    }
    const auto& returns = module->entry.function().getSchema().returns();
    const auto* result = graph->outputs().empty() ? nullptr : graph->outputs()[0];
    out += R"(],"returns":)" + return_kind(*graph, returns.at(0).type(), result) + "}";
    *schema = sc_text(out);
  });
}

int sc_forks_write(const sc_module* module, bool* write, char** what, char** error) {
  return sc_try(error, [&] {
    Writes found;
    each_node(inlined(module)->block(), [&](jit::Node* node) {
      if (const auto body = forked_body(node)) find_writes(body, true, found);
    });
    *write = !found.attribute.empty();
    *what = sc_text(found.attribute);
  });
}

int sc_mutates(const sc_module* module, bool* attributes, bool* inputs, char** what, char** error) {
  return sc_try(error, [&] {
    Writes found;
    find_writes(inlined(module), false, found);
    *inputs = found.inputs;
    *attributes = !found.attribute.empty();
    *what = sc_text(found.attribute);
  });
}

namespace {
// `ops.name.operator`, as in the code that TorchScript saves: operators of libraries, and
// `ops.prim.RaiseException(message, "builtins.ValueError")`, which is what Python's raise becomes.
struct Operators : jit::SugaredValue {
  std::string kind() const override { return "operators"; }
  std::shared_ptr<SugaredValue> attr(const jit::SourceRange&, jit::GraphFunction&, const std::string& field) override {
    return std::make_shared<jit::BuiltinModule>(field);
  }
};

// `named.y.state(a, b)`: a NamedTuple with these fields.
struct Named : jit::SugaredValue {
  explicit Named(std::vector<std::string> fields) : fields_(std::move(fields)) {}
  std::string kind() const override { return "a NamedTuple"; }
  std::shared_ptr<SugaredValue> attr(const jit::SourceRange&, jit::GraphFunction&, const std::string& field) override {
    auto fields = fields_;
    fields.push_back(field);
    return std::make_shared<Named>(std::move(fields));
  }
  std::shared_ptr<SugaredValue> call(const jit::SourceRange& place, jit::GraphFunction& function,
                                     at::ArrayRef<jit::NamedValue> values, at::ArrayRef<jit::NamedValue>,
                                     size_t) override {
    auto& graph = *function.graph();
    std::vector<jit::Value*> elements;
    std::vector<c10::TypePtr> types;
    for (const auto& value : values) {
      elements.push_back(value.value(graph));
      types.push_back(elements.back()->type());
    }
    const auto type = c10::TupleType::createNamed(c10::QualifiedName("__torch__.Named"), fields_, types);
    auto* tuple = graph.insertNode(graph.createTuple(elements, type));
    tuple->setSourceRange(place);
    return std::make_shared<jit::SimpleValue>(tuple->output());
  }

 private:
  std::vector<std::string> fields_;
};

struct Names : jit::NativeResolver {
  std::shared_ptr<jit::SugaredValue> resolveValue(const std::string& name, jit::GraphFunction& function,
                                                  const jit::SourceRange& place) override {
    if (name == "ops") return std::make_shared<Operators>();
    if (name == "fork") return jit::SpecialFormValue::create(c10::prim::fork);
    if (name == "named") return std::make_shared<Named>(std::vector<std::string>{});
    return jit::NativeResolver::resolveValue(name, function, place);
  }
};
} // namespace

int sc_define(const char* source, const char* const* parameters, size_t count, bool frozen, const char* path, char** error) {
  return sc_try(error, [&] {
    jit::Module module("Model");
    auto generator = at::detail::createCPUGenerator(7);
    for (size_t i = 0; i < count; i++) {
      // "name:2x3", or "buffer name:2x3" for one that is no parameter; "name:2x3=1.5" has values about 1.5.
      std::string text = parameters[i];
      const bool buffer = text.rfind("buffer ", 0) == 0;
      if (buffer) text = text.substr(7);
      const auto colon = text.find(':');
      TORCH_CHECK(colon != std::string::npos, "a parameter is written name:2x3, not ", text);
      const auto equals = std::min(text.find('=', colon), text.size());
      const double mean = equals == text.size() ? 0.0 : std::stod(text.substr(equals + 1));
      std::vector<int64_t> shape;
      std::istringstream sizes(text.substr(colon + 1, equals - colon - 1));
      for (std::string size; std::getline(sizes, size, 'x');) shape.push_back(std::stoll(size));
      auto value = at::randn(shape, generator) * 0.1 + mean;
      const auto name = text.substr(0, colon);
      if (buffer) {
        module.register_buffer(name, value);
      } else {
        module.register_parameter(name, value, false);
      }
    }
    module.define(source, std::make_shared<Names>());
    if (frozen) {
      torch::NoGradGuard guard;
      std::vector<std::string> methods;
      for (const auto* method : {"forward", "start", "step"}) {
        if (module.find_method(method)) methods.push_back(method);
      }
      module = sc_frozen(module, methods, false);
    }
    module.save(path);
  });
}

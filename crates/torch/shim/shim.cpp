#include "shim.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/CachingHostAllocator.h>
#include <caffe2/serialize/file_adapter.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#include <malloc.h>
#include <torch/csrc/jit/passes/freeze_module.h>
#include <torch/csrc/jit/passes/frozen_graph_optimizations.h>
#include <torch/csrc/jit/python/update_graph_executor_opt.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>
#include <torch/version.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "internal.h"

char* sc_text(const std::string& text) {
  char* copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (copy != nullptr) {
    std::memcpy(copy, text.data(), text.size());
    copy[text.size()] = 0;
  }
  return copy;
}

namespace {
// Grad mode off in any case; inference mode where the configuration leaves it on.
struct NoGrad {
  explicit NoGrad(bool inference) {
    if (inference) mode.emplace(true);
  }
  torch::NoGradGuard no_grad;
  std::optional<c10::InferenceMode> mode;
};

// What a loading thread has begun on its stream is done before a worker uses it on another.
void finish(const at::Device& device) {
  if (!device.is_cpu()) c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
}

// What this thread has begun on its stream is done before another stream uses it, or its memory.
void finish_stream(const at::Device& device) {
  if (device.is_cpu()) return;
  const c10::impl::VirtualGuardImpl guard(device.type());
  guard.synchronizeStream(guard.getStream(device));
}

// libtorch reads a tensor with one call, and a kernel that is not preempted inside calls lets nobody else have
// the core until 50 MB are copied, whatever the priority of who reads. Between pieces it does.
class Pieces final : public caffe2::serialize::ReadAdapterInterface {
 public:
  explicit Pieces(const std::string& path) : file_(path) {}
  size_t size() const override { return file_.size(); }
  size_t read(uint64_t pos, void* buffer, size_t count, const char* what) const override {
    constexpr size_t piece = 256 << 10;
    size_t done = 0;
    while (done < count) {
      const size_t want = std::min(piece, count - done);
      const size_t got = file_.read(pos + done, static_cast<char*>(buffer) + done, want, what);
      done += got;
      if (got < want) break;
    }
    return done;
  }

 private:
  caffe2::serialize::FileAdapter file_;
};

at::Device device_of(int32_t cuda_index) {
  return cuda_index < 0 ? at::Device(at::kCPU) : at::Device(at::kCUDA, static_cast<at::DeviceIndex>(cuda_index));
}
} // namespace

void sc_free(char* text) { std::free(text); }

const char* sc_torch_version() { return TORCH_VERSION; }

char* sc_cpu_capability() { return sc_text(at::get_cpu_capability()); }

int sc_open_library(const char* path, char** error) {
  if (dlopen(path, RTLD_NOW | RTLD_GLOBAL) != nullptr) return 0;
  *error = sc_text(dlerror());
  return -1;
}

int32_t sc_cuda_devices(const char* library, char** why_none) {
  // Registers the CUDA backend with a binary that was linked against the CPU's libraries only.
  if (dlopen(library, RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    *why_none = sc_text(dlerror());
    return 0;
  }
  int32_t count = 0;
  char* error = nullptr;
  sc_try(&error, [&] {
    // Throws with the driver's reason, which deviceCount() swallows.
    at::globalContext().lazyInitDevice(at::kCUDA);
    count = c10::impl::VirtualGuardImpl(at::kCUDA).deviceCount();
  });
  *why_none = error;
  return count;
}

void sc_init() {
  // Two executors of one process otherwise fight over the cores with pools of their own.
  try {
    at::set_num_interop_threads(1);
  } catch (const std::exception&) {
    // Only the first call counts; that it has been set is all we want.
  }
}

int sc_device_memory(int32_t cuda_index, uint64_t* free, uint64_t* total, char** error) {
  return sc_try(error, [&] {
    const auto memory = at::getDeviceAllocator(at::kCUDA)->getMemoryInfo(device_of(cuda_index).index());
    *free = memory.first;
    *total = memory.second;
  });
}

int sc_release_memory(bool cuda, char** error) {
  // Large tensors have mappings of their own, which freeing ends; the rest is in the heap's free lists.
  malloc_trim(0);
  if (!cuda) return 0;
  return sc_try(error, [] {
    at::getDeviceAllocator(at::kCUDA)->emptyCache();
    at::getHostAllocator(at::kCUDA)->empty_cache();
  });
}

void sc_exit(int code) { std::_Exit(code); }

int sc_enter_device(int32_t cuda_index, char** error) {
  // A thread's first parallel operator would otherwise take the number that another thread set last.
  at::get_num_threads();
  if (cuda_index < 0) return 0;
  return sc_try(error, [&] {
    // A stream of its own per worker, through the device-independent guard: no CUDA headers needed.
    const auto device = device_of(cuda_index);
    c10::impl::VirtualGuardImpl guard(at::kCUDA);
    guard.setDevice(device);
    guard.exchangeStream(guard.getStreamFromGlobalPool(device));
  });
}

void sc_set_threads(int32_t threads) {
  // A thread's first parallel operator would otherwise undo it.
  at::get_num_threads();
  at::set_num_threads(threads);
}

int sc_load(const char* path, int32_t cuda_index, bool inference_mode, bool generates, sc_module** module,
            char** error) {
  return sc_try(error, [&] {
    NoGrad guard(inference_mode);
    auto loaded = torch::jit::load(std::make_shared<Pieces>(path), device_of(cuda_index));
    loaded.eval();
    finish(device_of(cuda_index));
    if (generates) sc_module::find(loaded, "step");
    *module = new sc_module(std::move(loaded), generates ? "start" : "forward", device_of(cuda_index));
  });
}

int sc_step(const sc_module* module, sc_module** step, char** error) {
  return sc_try(error, [&] { *step = new sc_module(module->module, "step", module->device); });
}

torch::jit::Module sc_frozen(const torch::jit::Module& module, const std::vector<std::string>& methods, bool optimize) {
  // As torch::jit::freeze does it, which insists on a method `forward`.
  auto result = torch::jit::freeze_module(module, methods);
  for (const auto& method : methods) {
    auto graph = result.get_method(method).graph();
    torch::jit::OptimizeFrozenGraph(graph);
  }
  if (!optimize) return result;
  // It looks after `forward` by itself.
  auto others = methods;
  others.erase(std::remove(others.begin(), others.end(), "forward"), others.end());
  return torch::jit::optimize_for_inference(result, others);
}

int sc_freeze(const sc_module* module, bool optimize, sc_module** frozen, char** error) {
  return sc_try(error, [&] {
    torch::NoGradGuard guard;
    auto result = sc_frozen(module->module, module->methods(), optimize);
    finish(module->device);
    *frozen = new sc_module(std::move(result), module->entry.name(), module->device);
  });
}

int sc_copy(const sc_module* module, sc_module** copy, char** error) {
  return sc_try(error, [&] {
    *copy = new sc_module(module->module.deepcopy(), module->entry.name(), module->device);
    finish(module->device);
  });
}

void sc_module_free(sc_module* module) { delete module; }

int sc_wait(const sc_module* module, char** error) {
  return sc_try(error, [&] { finish_stream(module->device); });
}

int sc_host_buffer(size_t bytes, void** handle, void** data, char** error) {
  return sc_try(error, [&] {
    const auto options = at::TensorOptions().dtype(at::kByte).pinned_memory(true);
    auto memory = at::empty({static_cast<int64_t>(bytes)}, options);
    *data = memory.mutable_data_ptr();
    *handle = new at::Tensor(std::move(memory));
  });
}

sc_call* sc_call_new(const sc_module* module) {
  auto* call = new sc_call;
  call->module = module;
  call->stack.reserve(module->defaults.size());
  return call;
}

void sc_call_free(sc_call* call) {
  if (!call->sent.empty()) {
    // What has been begun may be reading still.
    char* error = nullptr;
    sc_try(&error, [&] { finish_stream(call->module->device); });
    sc_free(error);
  }
  delete call;
}

int sc_push_default(sc_call* call, char** error) {
  // By position: the stack has exactly one value for each argument before this one.
  return sc_try(error, [&] { call->stack.push_back(call->module->defaults.at(call->stack.size())); });
}

void sc_push_int(sc_call* call, int64_t value) { call->stack.emplace_back(value); }
void sc_push_float(sc_call* call, double value) { call->stack.emplace_back(value); }
void sc_push_bool(sc_call* call, bool value) { call->stack.emplace_back(value); }

int sc_push_str(sc_call* call, const char* data, size_t size, char** error) {
  return sc_try(error, [&] { call->stack.emplace_back(std::string(data, size)); });
}

int sc_push_strings(sc_call* call, const char* const* data, const size_t* sizes, size_t count, char** error) {
  return sc_try(error, [&] {
    c10::List<std::string> list;
    list.reserve(count);
    for (size_t i = 0; i < count; i++) list.push_back(std::string(data[i], sizes[i]));
    call->stack.emplace_back(std::move(list));
  });
}

int sc_push_tensor(sc_call* call, const void* data, int8_t dtype, const int64_t* sizes, size_t dims, bool copy,
                   void* owner, void (*release)(void*), char** error) {
  // Released here unless a tensor has taken it over.
  std::unique_ptr<void, void (*)(void*)> held(owner, release);
  return sc_try(error, [&] {
    const auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(dtype));
    const at::IntArrayRef shape(sizes, dims);
    at::Tensor tensor;
    if (copy) {
      tensor = at::empty(shape, options);
      if (tensor.nbytes() > 0) std::memcpy(tensor.mutable_data_ptr(), data, tensor.nbytes());
    } else {
      tensor = at::from_blob(const_cast<void*>(data), shape, [owner, release](void*) { release(owner); }, options);
      held.release();
    }
    if (!call->module->device.is_cpu()) {
      // Only begun: what comes next on this worker's stream finds it there.
      auto there = tensor.to(call->module->device, /*non_blocking=*/true);
      call->sent.push_back(std::move(tensor));
      tensor = std::move(there);
    }
    call->stack.emplace_back(std::move(tensor));
  });
}

int sc_push_kept(sc_call* call, const void* handle, bool copy, char** error) {
  return sc_try(error, [&] {
    const auto& tensor = *static_cast<const at::Tensor*>(handle);
    const auto& device = call->module->device;
    TORCH_CHECK(tensor.device() == device, "a tensor that is on ", tensor.device(), " for a model on ", device);
    // Its memory may be given to another stream as soon as nobody has it.
    if (!device.is_cpu()) call->sent.push_back(tensor);
    call->stack.emplace_back(copy ? tensor.clone() : tensor);
  });
}

int sc_fold_rows(sc_call* call, size_t count, char** error) {
  return sc_try(error, [&] {
    const size_t first = call->stack.size() - count;
    std::vector<at::Tensor> parts;
    for (size_t i = 0; i < count; i++) parts.push_back(std::move(call->stack[first + i]).toTensor());
    call->stack.resize(first);
    call->stack.emplace_back(at::cat(parts, 0));
  });
}

int sc_fold_list(sc_call* call, size_t count, char** error) {
  return sc_try(error, [&] {
    c10::List<at::Tensor> list;
    list.reserve(count);
    const size_t first = call->stack.size() - count;
    for (size_t i = 0; i < count; i++) list.push_back(std::move(call->stack[first + i]).toTensor());
    call->stack.resize(first);
    call->stack.emplace_back(std::move(list));
  });
}

int sc_fold_dict(sc_call* call, const char* const* keys, const size_t* sizes, size_t count, char** error) {
  return sc_try(error, [&] {
    c10::Dict<std::string, at::Tensor> dict;
    const size_t first = call->stack.size() - count;
    for (size_t i = 0; i < count; i++) {
      dict.insert(std::string(keys[i], sizes[i]), std::move(call->stack[first + i]).toTensor());
    }
    call->stack.resize(first);
    call->stack.emplace_back(std::move(dict));
  });
}

int sc_run(const sc_module* module, sc_call* call, bool inference_mode, bool optimized, sc_value** value,
           char** error) {
  const int outcome = sc_try(error, [&] {
    NoGrad guard(inference_mode);
    std::optional<torch::jit::GraphOptimizerEnabledGuard> plain;
    if (!optimized) plain.emplace(false);
    *value = new sc_value{module->entry(std::move(call->stack)), std::move(call->sent)};
  });
  sc_call_free(call);
  return outcome;
}

namespace {
// By its elements, because a List[Any] may hold strings beside others.
bool is_strings(const c10::IValue& value) {
  const auto elements = value.toListRef();
  if (!elements.empty()) {
    return std::all_of(elements.begin(), elements.end(), [](const c10::IValue& element) { return element.isString(); });
  }
  const auto list = value.type()->cast<c10::ListType>();
  return list && list->getElementType()->kind() == c10::StringType::Kind;
}

bool is_string_dict(const c10::IValue& value) {
  return value.isGenericDict() && value.toGenericDict().keyType()->kind() == c10::StringType::Kind;
}
} // namespace

int sc_value_kind(const sc_value* value, sc_kind* kind, size_t* size, char** error) {
  return sc_try(error, [&] {
    const auto& inner = value->value;
    *kind = SC_OTHER;
    *size = 0;
    if (inner.isTensor()) {
      *kind = SC_TENSOR;
    } else if (inner.isTuple()) {
      *kind = SC_TUPLE;
      *size = inner.toTupleRef().elements().size();
    } else if (inner.isList()) {
      *kind = is_strings(inner) ? SC_STRINGS : SC_LIST;
      *size = inner.toListRef().size();
    } else if (is_string_dict(inner)) {
      *kind = SC_DICT;
      *size = inner.toGenericDict().size();
    }
  });
}

char* sc_value_type(const sc_value* value) {
  char* text = nullptr;
  char* error = nullptr;
  sc_try(&error, [&] { text = sc_text(value->value.isNone() ? "None" : value->value.type()->repr_str()); });
  sc_free(error);
  return text;
}

int sc_value_at(const sc_value* value, size_t index, sc_value** element, char** name, char** error) {
  return sc_try(error, [&] {
    const auto& inner = value->value;
    *name = nullptr;
    if (inner.isTuple()) {
      *element = new sc_value{inner.toTupleRef().elements().at(index)};
      const auto type = inner.toTupleRef().type();
      if (type->schema()) *name = sc_text(type->schema()->arguments().at(index).name());
    } else if (inner.isGenericDict()) {
      auto& entries = const_cast<sc_value*>(value)->entries;
      if (entries.empty()) {
        for (const auto& entry : inner.toGenericDict()) entries.emplace_back(entry.key().toStringRef(), entry.value());
      }
      *element = new sc_value{entries.at(index).second};
      *name = sc_text(entries.at(index).first);
    } else {
      *element = new sc_value{inner.toListRef().at(index)};
    }
  });
}

int sc_value_string(const sc_value* value, size_t index, const char** data, size_t* size, char** error) {
  return sc_try(error, [&] {
    const auto& text = value->value.toListRef().at(index).toStringRef();
    *data = text.data();
    *size = text.size();
  });
}

namespace {
// Row-major, without gaps and as the wire knows it. What was made in inference mode may be converted only in it.
at::Tensor dense(at::Tensor result, const at::Device& device) {
  TORCH_CHECK(result.defined(), "an undefined tensor");
  TORCH_CHECK(!result.is_quantized(), "a quantized tensor; dequantize it in the model");
  if (result.layout() != at::kStrided) result = result.to_dense();
  return result.to(device).contiguous().resolve_conj().resolve_neg();
}

sc_tensor described(at::Tensor&& tensor) {
  auto* handle = new at::Tensor(std::move(tensor));
  return {handle,
          handle->const_data_ptr(),
          handle->nbytes(),
          static_cast<int8_t>(handle->scalar_type()),
          static_cast<size_t>(handle->dim()),
          handle->sizes().data()};
}

// Whether it is no part of something larger, and no received bytes that were borrowed.
bool has_own_memory(const at::Tensor& tensor) {
  const auto& storage = tensor.storage();
  if (storage.nbytes() != tensor.nbytes()) return false;
  return !tensor.is_cpu() || storage.data_ptr().get_deleter() == c10::GetAllocator(at::kCPU)->raw_deleter();
}
} // namespace

int sc_value_tensor(const sc_value* value, sc_tensor* tensor, char** error) {
  return sc_try(error, [&] {
    c10::InferenceMode guard;
    // Waits for the worker's stream when it comes from a GPU.
    *tensor = described(dense(value->value.toTensor(), at::kCPU));
  });
}

int sc_value_keep(const sc_value* value, const sc_module* module, bool copy, sc_tensor* tensor, char** error) {
  return sc_try(error, [&] {
    at::Tensor made;
    {
      c10::InferenceMode guard;
      made = dense(value->value.toTensor(), module->device);
      if (copy || !has_own_memory(made)) made = made.clone();
    }
    // Outside of inference mode it becomes a tensor as any other, of the same memory.
    torch::NoGradGuard guard;
    auto kept = at::empty({0}, made.options());
    kept.set_(made.storage(), made.storage_offset(), made.sizes(), made.strides());
    *tensor = described(std::move(kept));
  });
}

int sc_kept_fetch(const void* handle, sc_tensor* tensor, char** error) {
  return sc_try(error, [&] { *tensor = described(static_cast<const at::Tensor*>(handle)->to(at::kCPU)); });
}

int sc_kept_split(const void* handle, size_t from, const size_t* rows, size_t count, void** parts, char** error) {
  return sc_try(error, [&] {
    const auto& tensor = *static_cast<const at::Tensor*>(handle);
    std::vector<std::unique_ptr<at::Tensor>> made;
    auto next = static_cast<int64_t>(from);
    for (size_t i = 0; i < count; i++) {
      const auto wanted = static_cast<int64_t>(rows[i]);
      made.push_back(std::make_unique<at::Tensor>(tensor.narrow(0, next, wanted).clone()));
      next += wanted;
    }
    finish_stream(tensor.device());
    for (size_t i = 0; i < count; i++) parts[i] = made[i].release();
  });
}

void sc_value_free(sc_value* value) { delete value; }
void sc_tensor_free(void* handle) { delete static_cast<at::Tensor*>(handle); }

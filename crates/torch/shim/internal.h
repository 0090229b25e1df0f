// What the files of the shim share.
#pragma once

#include <torch/csrc/jit/runtime/jit_exception.h>
#include <torch/script.h>

#include <string>
#include <vector>

#include "shim.h"

// A copy that sc_free takes.
char* sc_text(const std::string& text);

// Runs `body`; what it throws becomes the error's text, without C++ addresses.
template <typename Body>
int sc_try(char** error, Body&& body) {
  try {
    body();
    return 0;
  } catch (const c10::Error& thrown) {
    *error = sc_text(thrown.what_without_backtrace());
  } catch (const std::exception& thrown) {
    *error = sc_text(thrown.what());
  } catch (...) {
    *error = sc_text("an exception of no known type");
  }
  return -1;
}

// A copy without what inference does not need; these methods are what is run of it.
torch::jit::Module sc_frozen(const torch::jit::Module& module, const std::vector<std::string>& methods, bool optimize);

struct sc_module {
  sc_module(torch::jit::Module loaded, const std::string& method, at::Device on)
      : module(std::move(loaded)), entry(find(module, method)), device(on) {
    const auto& arguments = entry.function().getSchema().arguments();
    for (size_t i = 1; i < arguments.size(); i++) {
      defaults.push_back(arguments[i].default_value().value_or(c10::IValue()));
    }
  }

  static torch::jit::Method find(const torch::jit::Module& module, const std::string& method) {
    const auto found = module.find_method(method);
    if (found.has_value()) return *found;
    const bool start = module.find_method("start").has_value();
    const bool step = module.find_method("step").has_value();
    if (method == "forward") {
      TORCH_CHECK(!start || !step, "it has no method `forward`, by which a model is served; to serve its `start` and ",
                  "`step`, add `generate` to its configuration");
      TORCH_CHECK(false, "it has no method `forward`; a model is served by its `forward`");
    }
    const std::string missing = start || step ? "no method `" + method + "`" : "neither method `start` nor `step`";
    TORCH_CHECK(false, "it has ", missing, "; a model with `generate` in its configuration is served by its `start` and ",
                "`step`: export both, or remove `generate`");
  }

  // Those of its methods that are run, the first to be called first.
  std::vector<std::string> methods() const {
    if (entry.name() == "forward") return {"forward"};
    return {"start", "step"};
  }

  torch::jit::Module module;
  // The method that is run.
  mutable torch::jit::Method entry;
  at::Device device;
  // One per argument after self; None where there is no default.
  std::vector<c10::IValue> defaults;
};

struct sc_call {
  const sc_module* module;
  std::vector<c10::IValue> stack;
  // Tensors that a GPU may still be reading.
  std::vector<at::Tensor> sent = {};
};

struct sc_value {
  c10::IValue value;
  // Kept until the outputs have been fetched, by when the GPU has read them.
  std::vector<at::Tensor> sent = {};
  // Of a dict, in its order: its own iterator cannot jump.
  std::vector<std::pair<std::string, c10::IValue>> entries = {};
};

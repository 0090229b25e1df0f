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

struct sc_module {
  sc_module(torch::jit::Module loaded, at::Device on)
      : module(std::move(loaded)), forward(find_forward(module)), device(on) {
    const auto& arguments = forward.function().getSchema().arguments();
    for (size_t i = 1; i < arguments.size(); i++) {
      defaults.push_back(arguments[i].default_value().value_or(c10::IValue()));
    }
  }

  static torch::jit::Method find_forward(const torch::jit::Module& module) {
    const auto found = module.find_method("forward");
    TORCH_CHECK(found.has_value(), "it has no method `forward`; a model is served by its `forward`");
    return *found;
  }

  torch::jit::Module module;
  mutable torch::jit::Method forward;
  at::Device device;
  // One per argument after self; None where there is no default.
  std::vector<c10::IValue> defaults;
};

struct sc_call {
  const sc_module* module;
  std::vector<c10::IValue> stack;
  // Tensors in host memory that a GPU may still be reading.
  std::vector<at::Tensor> sent = {};
};

struct sc_value {
  c10::IValue value;
  // Kept until the outputs have been fetched, by when the GPU has read them.
  std::vector<at::Tensor> sent = {};
  // Of a dict, in its order: its own iterator cannot jump.
  std::vector<std::pair<std::string, c10::IValue>> entries = {};
};

// libtorch as a C interface: modules with their schema, calls with any argument,
// inference mode, streams, thread counts, operator libraries, and errors as text.
//
// Every function that can fail returns 0, or -1 with `*error` set to a text that the caller gives
// back to sc_free. No exception leaves this file.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// A loaded module with the method that is run looked up. Shared by threads.
typedef struct sc_module sc_module;
// The arguments of one call, pushed in order.
typedef struct sc_call sc_call;
// What a run returned, or a part of it.
typedef struct sc_value sc_value;

typedef struct {
  void* handle; // a torch::Tensor that keeps the data alive; sc_tensor_free
  const void* data; // contiguous; in host memory, where it is not said that it stays on its device
  size_t bytes;
  int8_t dtype; // c10::ScalarType
  size_t dims;
  const int64_t* sizes; // alive as long as the handle
} sc_tensor;

enum sc_kind : int32_t { SC_TENSOR, SC_STRINGS, SC_LIST, SC_TUPLE, SC_DICT, SC_OTHER };

void sc_free(char* text);

// Process-wide.
const char* sc_torch_version();
char* sc_cpu_capability();
int sc_open_library(const char* path, char** error);
int32_t sc_cuda_devices(const char* library, char** why_none);
void sc_init();
// Without running destructors: other threads may be inside libtorch.
[[noreturn]] void sc_exit(int code);

// Bytes of a GPU that are free, and all that it has.
int sc_device_memory(int32_t cuda_index, uint64_t* free, uint64_t* total, char** error);

// Gives memory that has been freed back to the system: the heap's, and what the GPUs' allocator keeps.
int sc_release_memory(bool cuda, char** error);

// Per thread.
int sc_enter_device(int32_t cuda_index, char** error); // -1: the CPU
void sc_set_threads(int32_t threads);

// Modules. `schema` is JSON, see schema.rs. One that generates is run by its `start`, any other by its `forward`.
int sc_load(const char* path, int32_t cuda_index, bool inference_mode, bool generates, sc_module** module,
            char** error);
// The same module, run by its `step`.
int sc_step(const sc_module* module, sc_module** step, char** error);
int sc_freeze(const sc_module* module, bool optimize, sc_module** frozen, char** error);
int sc_schema(const sc_module* module, char** schema, char** error);
// Freezing folds attributes that forks change, so these are looked for before.
int sc_forks_write(const sc_module* module, bool* write, char** what, char** error);
int sc_mutates(const sc_module* module, bool* attributes, bool* inputs, char** what, char** error);
int sc_copy(const sc_module* module, sc_module** copy, char** error);
void sc_module_free(sc_module* module);
// Waits until the module's device has done what this thread has begun there.
int sc_wait(const sc_module* module, char** error);

// Page-locked host memory, from which a GPU copies without waiting; libtorch keeps what is freed for the next.
int sc_host_buffer(size_t bytes, void** handle, void** data, char** error); // sc_tensor_free frees the handle

// Calls.
sc_call* sc_call_new(const sc_module* module);
void sc_call_free(sc_call* call);
int sc_push_default(sc_call* call, char** error);
// Room is reserved for every argument, so that these cannot fail.
void sc_push_int(sc_call* call, int64_t value);
void sc_push_float(sc_call* call, double value);
void sc_push_bool(sc_call* call, bool value);
int sc_push_str(sc_call* call, const char* data, size_t size, char** error);
int sc_push_strings(sc_call* call, const char* const* data, const size_t* sizes, size_t count, char** error);
// Borrows `data` until `release(owner)`; copies it when `copy` is set, and then releases at once.
int sc_push_tensor(sc_call* call, const void* data, int8_t dtype, const int64_t* sizes, size_t dims, bool copy,
                   void* owner, void (*release)(void*), char** error);
// A tensor that stayed on the module's device, by its handle.
int sc_push_kept(sc_call* call, const void* handle, bool copy, char** error);
// The `count` tensors pushed last become one argument.
int sc_fold_rows(sc_call* call, size_t count, char** error); // one tensor, of all their rows
int sc_fold_list(sc_call* call, size_t count, char** error);
int sc_fold_dict(sc_call* call, const char* const* keys, const size_t* sizes, size_t count, char** error);
// Runs and frees the call.
int sc_run(const sc_module* module, sc_call* call, bool inference_mode, bool optimized, sc_value** value,
           char** error);

// Values.
int sc_value_kind(const sc_value* value, sc_kind* kind, size_t* size, char** error);
char* sc_value_type(const sc_value* value); // null where it cannot be told
// The n-th element; for a dict and a NamedTuple with its name, else with null.
int sc_value_at(const sc_value* value, size_t index, sc_value** element, char** name, char** error);
// The n-th string of SC_STRINGS, alive as long as the value.
int sc_value_string(const sc_value* value, size_t index, const char** data, size_t* size, char** error);
int sc_value_tensor(const sc_value* value, sc_tensor* tensor, char** error);
// A tensor that stays on the module's device, for other runs, in inference mode or not; copied where it has no memory
// of its own, or `copy` is set. Only begun: sc_wait.
int sc_value_keep(const sc_value* value, const sc_module* module, bool copy, sc_tensor* tensor, char** error);
void sc_value_free(sc_value* value);
void sc_tensor_free(void* handle);

// Of a tensor that stays on its device: its elements in host memory, and copies of `rows[i]` rows each, one behind the
// other beginning with the row `from`.
int sc_kept_fetch(const void* handle, sc_tensor* tensor, char** error);
int sc_kept_split(const void* handle, size_t from, const size_t* rows, size_t count, void** parts, char** error);

// Compiles TorchScript source to a model file; parameters are "name:2x3", drawn from a fixed seed. A frozen one has its
// parameters as constants, as `sc_freeze` makes them.
int sc_define(const char* source, const char* const* parameters, size_t count, bool frozen, const char* path, char** error);
}

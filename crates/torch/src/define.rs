//! TorchScript source to a model file, for tests and samples: no Python needed.

use std::path::Path;

use crate::ffi;

/// Compiles `source`, which is `def forward(self, ...): ...` and further methods, and saves the module.
///
/// `torch.name(...)` are libtorch's operators, `ops.library.name(...)` those of any library that is open, and
/// `named.a.b(x, y)` is a NamedTuple with the fields `a` and `b`. `fork(self.method, x)` is `torch.jit.fork`.
/// Each parameter is `name:2x3`, or `buffer name:2x3`; its values are drawn from a fixed seed and lie about 0,
/// or about 1.5 in `name:2x3=1.5`.
///
/// # Errors
/// libtorch's reason.
pub fn define(source: &str, parameters: &[&str], path: &Path) -> Result<(), String> {
    // The compiler's message is many lines, and all of them help whoever wrote the source.
    ffi::define(source, parameters, false, path)
}

/// As [`define`], and frozen with those of `forward`, `start` and `step` that it has: the same module as a server runs
/// it that freezes what it loads.
///
/// # Errors
/// libtorch's reason.
pub fn define_frozen(source: &str, parameters: &[&str], path: &Path) -> Result<(), String> {
    ffi::define(source, parameters, true, path)
}

//! The emulator's C interface, declaration by declaration as `cuda/simt/abi.h` and `cuda/simt/hopper.h` have it.

use std::ffi::{c_char, c_int, c_void};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct KeelParameter {
    pub kind: u8,
    pub element: u8,
    pub is_const: u8,
    pub bytes: u8,
}

#[repr(C)]
pub struct KeelKernel {
    pub name: *const c_char,
    pub parameters: *const KeelParameter,
    pub parameter_count: u32,
    pub threads: u32,
    pub shared_bytes: u32,
    pub shared_alignment: u32,
    enter: unsafe extern "C" fn(*mut *mut c_void),
}

// SAFETY: what the pointers lead to is constant and lives as long as the program.
unsafe impl Send for KeelKernel {}
// SAFETY: as above.
unsafe impl Sync for KeelKernel {}

#[repr(C)]
pub struct KeelExtent {
    pub start: *const c_void,
    pub bytes: u64,
    pub writable: u32,
    pub argument: u32,
}

#[repr(C)]
pub struct KeelOptions {
    pub schedule: u32,
    pub copies: u32,
    pub seed: u64,
    pub workers: u32,
    pub time_limit_ms: u32,
    pub shared_limit: u32,
    pub planted_bug: u32,
}

type Launch = unsafe extern "C" fn(
    kernel: *const KeelKernel,
    cluster: u32,
    grid: *const u32,
    block: *const u32,
    shared_bytes: u32,
    arguments: *mut *mut c_void,
    options: *const KeelOptions,
    extents: *const KeelExtent,
    extent_count: u32,
) -> c_int;

/// The library's functions. There is one such table or none, depending on what the build script found, so that nothing
/// else needs to know how this program was built.
pub struct Library {
    pub kernel_count: unsafe extern "C" fn() -> u32,
    pub kernel: unsafe extern "C" fn(u32) -> *const KeelKernel,
    pub is_checked: unsafe extern "C" fn() -> c_int,
    pub launch: Launch,
    pub last_error: unsafe extern "C" fn() -> *const c_char,
    pub planted_bug_reached: unsafe extern "C" fn() -> c_int,
    pub allocate: unsafe extern "C" fn(usize) -> *mut c_void,
    pub release: unsafe extern "C" fn(*mut c_void),
    pub protect: unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
}

/// The linked library; `None` when it was left out of the build.
#[cfg(not(keel_simt))]
pub fn library() -> Option<&'static Library> {
    None
}

/// The linked library; `None` when it was left out of the build.
#[cfg(keel_simt)]
pub fn library() -> Option<&'static Library> {
    static LIBRARY: Library = Library {
        kernel_count: linked::keel_simt_kernel_count,
        kernel: linked::keel_simt_kernel,
        is_checked: linked::keel_simt_is_checked,
        launch: linked::keel_simt_launch_clusters,
        last_error: linked::keel_simt_last_error,
        planted_bug_reached: linked::keel_simt_planted_bug_reached,
        allocate: linked::keel_simt_allocate,
        release: linked::keel_simt_release,
        protect: linked::keel_simt_protect,
    };
    Some(&LIBRARY)
}

#[cfg(keel_simt)]
mod linked {
    use super::*;

    unsafe extern "C" {
        pub fn keel_simt_kernel_count() -> u32;
        pub fn keel_simt_kernel(index: u32) -> *const KeelKernel;
        pub fn keel_simt_is_checked() -> c_int;
        pub fn keel_simt_launch_clusters(
            kernel: *const KeelKernel,
            cluster: u32,
            grid: *const u32,
            block: *const u32,
            shared_bytes: u32,
            arguments: *mut *mut c_void,
            options: *const KeelOptions,
            extents: *const KeelExtent,
            extent_count: u32,
        ) -> c_int;
        pub fn keel_simt_last_error() -> *const c_char;
        pub fn keel_simt_planted_bug_reached() -> c_int;
        pub fn keel_simt_allocate(bytes: usize) -> *mut c_void;
        pub fn keel_simt_release(memory: *mut c_void);
        pub fn keel_simt_protect(memory: *mut c_void, writable: c_int) -> c_int;
    }
}

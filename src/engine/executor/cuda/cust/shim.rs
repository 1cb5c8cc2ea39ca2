//! The driver functions that cust is linked against, each a jump through a table that [`fill`] fills from the library
//! that was loaded at run time. Without it a program with cust would not start where there is no libcuda.
//!
//! Until the table is filled every function reports that there is no device.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use cudarc::driver::sys;

/// CUDA_ERROR_NO_DEVICE.
extern "C" fn no_device() -> c_int {
    100
}

/// Defines each function and its slot: eight bytes that first hold the address of [`no_device`].
macro_rules! shim {
    ($($name:literal,)*) => {
        const NAMES: [&str; [$($name),*].len()] = [$($name),*];

        std::arch::global_asm!(
            ".pushsection .data.keel_cust,\"aw\"",
            ".balign 8",
            ".globl keel_cust_slots",
            ".hidden keel_cust_slots",
            "keel_cust_slots:",
            $(concat!(".Lkeel_cust_", $name, ": .quad {none}"),)*
            ".popsection",
            ".pushsection .text.keel_cust,\"ax\"",
            $(
                concat!(".globl ", $name),
                concat!(".hidden ", $name),
                concat!(".type ", $name, ",@function"),
                concat!($name, ":"),
                jump!($name),
            )*
            ".popsection",
            none = sym no_device,
        );
    };
}

#[cfg(target_arch = "x86_64")]
macro_rules! jump {
    ($name:literal) => {
        concat!("jmp qword ptr [rip + .Lkeel_cust_", $name, "]")
    };
}

#[cfg(target_arch = "aarch64")]
macro_rules! jump {
    ($name:literal) => {
        concat!(
            "adrp x16, .Lkeel_cust_",
            $name,
            "\n",
            "ldr x16, [x16, :lo12:.Lkeel_cust_",
            $name,
            "]\n",
            "br x16"
        )
    };
}

// What cust 0.3.2 refers to, and what the launcher beside this file calls itself.
shim! {
    "cuArray3DCreate_v2",
    "cuArray3DGetDescriptor_v2",
    "cuArrayDestroy",
    "cuCtxCreate_v2",
    "cuCtxDestroy_v2",
    "cuCtxGetApiVersion",
    "cuCtxGetCacheConfig",
    "cuCtxGetCurrent",
    "cuCtxGetDevice",
    "cuCtxGetFlags",
    "cuCtxGetLimit",
    "cuCtxGetSharedMemConfig",
    "cuCtxGetStreamPriorityRange",
    "cuCtxPopCurrent_v2",
    "cuCtxPushCurrent_v2",
    "cuCtxSetCacheConfig",
    "cuCtxSetCurrent",
    "cuCtxSetLimit",
    "cuCtxSetSharedMemConfig",
    "cuCtxSynchronize",
    "cuDestroyExternalMemory",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxReset_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxSetFlags_v2",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuExternalMemoryGetMappedBuffer",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuFuncSetCacheConfig",
    "cuFuncSetSharedMemConfig",
    "cuGetErrorString",
    "cuGraphAddKernelNode",
    "cuGraphCreate",
    "cuGraphDebugDotPrint",
    "cuGraphDestroy",
    "cuGraphGetEdges",
    "cuGraphGetNodes",
    "cuGraphKernelNodeGetParams",
    "cuGraphNodeGetType",
    "cuImportExternalMemory",
    "cuInit",
    "cuLaunchHostFunc",
    "cuLaunchKernel",
    "cuLinkAddData_v2",
    "cuLinkComplete",
    "cuLinkCreate_v2",
    "cuLinkDestroy",
    "cuMemAdvise",
    "cuMemAllocAsync",
    "cuMemAllocHost_v2",
    "cuMemAllocManaged",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemPrefetchAsync",
    "cuMemcpy2D_v2",
    "cuMemcpyAtoH_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoD_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoH_v2",
    "cuMemcpyHtoA_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyHtoD_v2",
    "cuMemsetD16Async",
    "cuMemsetD16_v2",
    "cuMemsetD32Async",
    "cuMemsetD32_v2",
    "cuMemsetD8Async",
    "cuMemsetD8_v2",
    "cuModuleGetFunction",
    "cuModuleGetGlobal_v2",
    "cuModuleLoad",
    "cuModuleLoadData",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuOccupancyAvailableDynamicSMemPerBlock",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuOccupancyMaxPotentialBlockSize",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamGetFlags",
    "cuStreamGetPriority",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuSurfObjectCreate",
    "cuSurfObjectDestroy",
    "cuSurfObjectGetResourceDesc",
    "cuTexObjectCreate",
    "cuTexObjectDestroy",
    "cuTexObjectGetResourceDesc",
    "cuTexObjectGetResourceViewDesc",
}

unsafe extern "C" {
    /// As many as there are names, in their order.
    static keel_cust_slots: [AtomicPtr<c_void>; NAMES.len()];
}

/// Points every function at the loaded driver's; those that it does not have stay as they are. Call it only where the
/// library is known to be present.
pub(super) fn fill() {
    for (index, name) in NAMES.iter().enumerate() {
        // SAFETY: the library is present; the symbol's address is only stored, and called by cust with the type that its
        // bindings give the function.
        let found = unsafe { sys::culib().get::<*mut c_void>(name.as_bytes()) };
        if let Ok(function) = found {
            // SAFETY: the slots are defined above, as many as there are names, and only touched atomically or by a jump.
            let slots = unsafe { &keel_cust_slots };
            slots[index].store(*function, Ordering::Release);
        }
    }
}

//! NVIDIA's collective library, looked for when it is needed: this program starts without it, and nothing is linked.

use std::ffi::{CStr, c_char, c_int, c_void};

use libloading::Library as Loaded;

use keel_base::error::{Error, Result};

/// A communicator, which only the library looks into.
pub(super) type Comm = *mut c_void;

/// What a rank tells the others so that they find each other: opaque, and passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub [u8; 128]);

/// The library's names, in the order in which they are tried. Its wheels and its packages for running alone have only the
/// first; packages for developing have both.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// The file to take in their place.
const VARIABLE: &str = "KEEL_NCCL";

/// The oldest version whose functions are those declared here and whose calls can be captured beside each other: 2.19.
const OLDEST: c_int = 21_900;

/// Bytes, among the library's types of elements.
pub(super) const BYTE: c_int = 1;

/// Success, among its results.
const SUCCESS: c_int = 0;

/// A call that goes on in the background.
const IN_PROGRESS: c_int = 7;

type Stream = *mut c_void;

/// The functions, as `nccl.h` declares them.
pub(super) struct Functions {
    get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    comm_init_rank: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int) -> c_int,
    comm_destroy: unsafe extern "C" fn(Comm) -> c_int,
    comm_count: unsafe extern "C" fn(Comm, *mut c_int) -> c_int,
    comm_user_rank: unsafe extern "C" fn(Comm, *mut c_int) -> c_int,
    comm_get_async_error: unsafe extern "C" fn(Comm, *mut c_int) -> c_int,
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    get_last_error: unsafe extern "C" fn(Comm) -> *const c_char,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    all_gather: unsafe extern "C" fn(u64, u64, usize, c_int, Comm, Stream) -> c_int,
    send: unsafe extern "C" fn(u64, usize, c_int, c_int, Comm, Stream) -> c_int,
    receive: unsafe extern "C" fn(u64, usize, c_int, c_int, Comm, Stream) -> c_int,
}

/// The library, loaded.
pub struct Library {
    functions: Functions,
    /// Where it was found.
    name: String,
    version: c_int,
    /// Keeps the functions where they are.
    _loaded: Loaded,
}

fn unusable(problem: impl ToString, remedy: impl ToString) -> Error {
    Error::Device {
        device: "NCCL".to_owned(),
        problem: problem.to_string(),
        remedy: remedy.to_string(),
    }
}

impl Library {
    /// Loads it: `$KEEL_NCCL`, where that is set, or the first of its names that the loader finds.
    ///
    /// # Errors
    /// [`Error::Device`] when there is none, it lacks a function, or it is too old.
    pub fn load() -> Result<Library> {
        let chosen = std::env::var(VARIABLE).ok().filter(|file| !file.is_empty());
        let names: Vec<String> = match &chosen {
            Some(file) => vec![file.clone()],
            None => NAMES.map(str::to_owned).to_vec(),
        };
        let mut problems = Vec::new();
        for name in names {
            // SAFETY: loading runs the library's initialisers; NCCL's only register themselves.
            match unsafe { Loaded::new(&name) } {
                Ok(loaded) => return Library::of(loaded, name),
                Err(problem) => problems.push(format!("{name}: {}", words(&problem))),
            }
        }
        Err(unusable(
            format!("it cannot be loaded ({})", problems.join("; ")),
            format!(
                "several GPUs need it: install NVIDIA's package or wheel and name its libnccl.so.2 by {VARIABLE} or \
                 LD_LIBRARY_PATH"
            ),
        ))
    }

    fn of(loaded: Loaded, name: String) -> Result<Library> {
        let functions = functions(&loaded, &name)?;
        let mut version = 0;
        // SAFETY: writes one integer.
        let code = unsafe { (functions.get_version)(&mut version) };
        let library = Library {
            functions,
            name,
            version,
            _loaded: loaded,
        };
        library.check(code, "ncclGetVersion", None)?;
        if version < OLDEST {
            return Err(unusable(
                format!("{} is version {}", library.name, library.version()),
                format!("install {} or newer", in_words(OLDEST)),
            ));
        }
        Ok(library)
    }

    /// Its version, such as `2.32.3`.
    pub fn version(&self) -> String {
        in_words(self.version)
    }

    /// Turns a result into words. `call` says what was asked for.
    fn check(&self, code: c_int, call: &str, comm: Option<Comm>) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: any number is a question, and a communicator may be null; what comes back are texts of the library's own.
        let (what, last) = unsafe {
            let comm = comm.unwrap_or(std::ptr::null_mut());
            let what = (self.functions.get_error_string)(code);
            (text(what), text((self.functions.get_last_error)(comm)))
        };
        let what = what.unwrap_or_else(|| format!("code {code}"));
        let last = last.filter(|text| !text.trim().is_empty());
        let more = last.map_or(String::new(), |text| format!(" ({})", text.trim()));
        Err(Error::stopped(
            format!("NCCL {}", self.version()),
            format!("{call}: {what}{more}"),
            "NCCL_DEBUG=INFO says more; go on from the newest checkpoint with --resume",
        ))
    }

    /// What rank 0 tells the others.
    pub(super) fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: writes 128 bytes, which is what an id has.
        let code = unsafe { (self.functions.get_unique_id)(&mut id) };
        self.check(code, "ncclGetUniqueId", None)?;
        Ok(id)
    }

    /// Makes a communicator, together with all other ranks.
    pub(super) fn join(&self, id: UniqueId, rank: usize, ranks: usize) -> Result<Comm> {
        let mut comm: Comm = std::ptr::null_mut();
        // SAFETY: writes one pointer; the device whose context is current is this rank's.
        let code = unsafe {
            (self.functions.comm_init_rank)(&mut comm, ranks as c_int, id, rank as c_int)
        };
        self.check(code, "ncclCommInitRank", None)?;
        let (mut own, mut all) = (0, 0);
        // SAFETY: the communicator was just made; each call writes one integer.
        let codes = unsafe {
            let own = (self.functions.comm_user_rank)(comm, &mut own);
            (own, (self.functions.comm_count)(comm, &mut all))
        };
        self.check(codes.0, "ncclCommUserRank", Some(comm))?;
        self.check(codes.1, "ncclCommCount", Some(comm))?;
        if (own as usize, all as usize) != (rank, ranks) {
            let problem =
                format!("it says rank {own} of {all} where this is rank {rank} of {ranks}");
            return Err(unusable(problem, "start all ranks alike"));
        }
        Ok(comm)
    }

    /// Ends a communicator on which nothing is under way.
    pub(super) fn leave(&self, comm: Comm) -> Result<()> {
        // SAFETY: the caller made it by `join` and does not use it again.
        let code = unsafe { (self.functions.comm_destroy)(comm) };
        self.check(code, "ncclCommDestroy", None)
    }

    /// What went wrong since, where no call is to be blamed.
    pub(super) fn check_later(&self, comm: Comm) -> Result<()> {
        let mut later = 0;
        // SAFETY: the communicator is alive; the call writes one integer.
        let code = unsafe { (self.functions.comm_get_async_error)(comm, &mut later) };
        self.check(code, "ncclCommGetAsyncError", Some(comm))?;
        if later == IN_PROGRESS {
            return Ok(());
        }
        self.check(later, "a collective that was begun before", Some(comm))
    }

    /// Sends `slice` bytes at `from` to every rank and places those of all at `to`.
    ///
    /// # Safety
    /// `from` has `slice` bytes and `to` as many for every rank, in the memory of the communicator's device, until what is
    /// queued on `stream` has run.
    pub(super) unsafe fn all_gather(
        &self,
        [from, to]: [u64; 2],
        slice: usize,
        comm: Comm,
        stream: Stream,
    ) -> Result<()> {
        // SAFETY: as the caller promises.
        let code = unsafe { (self.functions.all_gather)(from, to, slice, BYTE, comm, stream) };
        self.check(code, "ncclAllGather", Some(comm))
    }

    /// Sends to each of `ranks` ranks its slice of `slice` bytes at `from`, and places those for this one at `to`.
    ///
    /// # Safety
    /// `from` and `to` have `slice` bytes for every rank, in the memory of the communicator's device, until what is queued on
    /// `stream` has run.
    pub(super) unsafe fn exchange(
        &self,
        [from, to]: [u64; 2],
        slice: usize,
        ranks: usize,
        comm: Comm,
        stream: Stream,
    ) -> Result<()> {
        let functions = &self.functions;
        // SAFETY: takes nothing.
        let code = unsafe { (functions.group_start)() };
        self.check(code, "ncclGroupStart", Some(comm))?;
        let mut parts = Ok(());
        for rank in 0..ranks {
            let place = (rank * slice) as u64;
            let peer = rank as c_int;
            // SAFETY: as the caller promises, slice by slice.
            let codes = unsafe {
                let sent = (functions.send)(from + place, slice, BYTE, peer, comm, stream);
                let received = (functions.receive)(to + place, slice, BYTE, peer, comm, stream);
                [sent, received]
            };
            for (code, call) in codes.into_iter().zip(["ncclSend", "ncclRecv"]) {
                parts = parts.and_then(|()| self.check(code, call, Some(comm)));
            }
        }
        // A group that was begun is ended, whatever its parts said.
        // SAFETY: takes nothing.
        let code = unsafe { (functions.group_end)() };
        parts.and_then(|()| self.check(code, "ncclGroupEnd", Some(comm)))
    }
}

fn in_words(version: c_int) -> String {
    format!(
        "{}.{}.{}",
        version / 10_000,
        version / 100 % 100,
        version % 100
    )
}

/// A text that a library returned.
///
/// # Safety
/// The pointer is null or leads to a text that ends in a zero.
pub(super) unsafe fn text(pointer: *const c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: not null, so a text, by the caller's promise.
    let text = unsafe { CStr::from_ptr(pointer) };
    Some(text.to_string_lossy().into_owned())
}

/// An error of the loader on one line.
pub(super) fn words(problem: &libloading::Error) -> String {
    let mut text = problem.to_string();
    let source = std::error::Error::source(problem).map(ToString::to_string);
    if let Some(source) = source.filter(|source| !text.contains(source)) {
        text = source;
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn functions(loaded: &Loaded, name: &str) -> Result<Functions> {
    let missing = |symbol: &str| {
        let problem = format!("{name} has no function {symbol}");
        unusable(
            problem,
            format!("install NCCL {} or newer", in_words(OLDEST)),
        )
    };
    macro_rules! function {
        ($symbol:literal) => {
            // SAFETY: a symbol of this name has this type, by nccl.h of all versions from 2.19 on, and stays as long as the
            // library, which is kept beside it.
            *unsafe { loaded.get(concat!($symbol, "\0").as_bytes()) }.map_err(|_| missing($symbol))?
        };
    }
    Ok(Functions {
        get_version: function!("ncclGetVersion"),
        get_unique_id: function!("ncclGetUniqueId"),
        comm_init_rank: function!("ncclCommInitRank"),
        comm_destroy: function!("ncclCommDestroy"),
        comm_count: function!("ncclCommCount"),
        comm_user_rank: function!("ncclCommUserRank"),
        comm_get_async_error: function!("ncclCommGetAsyncError"),
        get_error_string: function!("ncclGetErrorString"),
        get_last_error: function!("ncclGetLastError"),
        group_start: function!("ncclGroupStart"),
        group_end: function!("ncclGroupEnd"),
        all_gather: function!("ncclAllGather"),
        send: function!("ncclSend"),
        receive: function!("ncclRecv"),
    })
}

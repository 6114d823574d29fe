//! What stands between C and Rust.

use std::ffi::{CStr, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Failure, SEALANE_E_FORKED, SEALANE_E_PANIC};
use crate::fork;

pub(crate) type Outcome<T> = Result<T, Failure>;

/// What an opaque pointer points to.
pub struct Handle<T> {
    /// Of the process that made it.
    generation: u64,
    poisoned: AtomicBool,
    value: T,
}

impl<T> Handle<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { generation: fork::generation(), poisoned: AtomicBool::new(false), value }
    }

    fn check(&self) -> Outcome<()> {
        if !fork::is_ours(self.generation) {
            let text = "the handle was made before a fork, in the parent: it may use it, the \
                        child may not";
            return Err(Failure(SEALANE_E_FORKED, text.to_owned()));
        }
        if self.poisoned.load(Ordering::Acquire) {
            return Err(poisoned());
        }
        Ok(())
    }
}

/// What calls on a handle get once one of them has panicked.
pub(crate) fn poisoned() -> Failure {
    let text = "a bug of the library in an earlier call: the handle serves no more";
    Failure(SEALANE_E_PANIC, text.to_owned())
}

/// A type behind an opaque pointer.
pub trait Opaque: Sized {
    type Value;
    const NAME: &'static str;
    fn handle(&self) -> &Handle<Self::Value>;
    fn wrap(handle: Handle<Self::Value>) -> Self;
}

/// Makes a struct around a [`Handle`] an opaque type. The struct stands by itself, where cbindgen
/// sees it.
macro_rules! opaque {
    ($name:ident, $value:ty) => {
        impl $crate::fence::Opaque for $name {
            type Value = $value;
            const NAME: &'static str = stringify!($name);
            fn handle(&self) -> &$crate::fence::Handle<$value> {
                &self.0
            }
            fn wrap(handle: $crate::fence::Handle<$value>) -> Self {
                Self(handle)
            }
        }
    };
}
pub(crate) use opaque;

/// A panic says where it was by `sealane_last_error`, and nothing on standard error. The hook is
/// that of this library's own copy of the standard library.
fn hush() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    if !cfg!(test) {
        ONCE.call_once(|| {
            std::panic::set_hook(Box::new(|info| {
                let _ = PANIC.try_with(|panic| panic.replace(info.to_string()));
            }));
        });
    }
}

thread_local! {
    static PANIC: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

/// Runs a call without a handle.
pub(crate) fn call(run: impl FnOnce() -> Outcome<i64>) -> i64 {
    hush();
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(count)) => count,
        Ok(Err(failure)) => failure.tell().into(),
        Err(_) => {
            let place = PANIC.try_with(std::cell::RefCell::take).unwrap_or_default();
            let text = format!("a bug of the library: {place}");
            Failure(SEALANE_E_PANIC, text).tell().into()
        }
    }
}

/// Runs a call on a handle; a panic poisons it.
///
/// # Safety
///
/// `pointer` is null, or came from [`give`] and was not destroyed.
pub(crate) unsafe fn with<H: Opaque>(
    pointer: *const H,
    run: impl FnOnce(&H::Value) -> Outcome<i64>,
) -> i64 {
    call(|| {
        // SAFETY: as this function's.
        let handle = unsafe { borrow(pointer) }?;
        match catch_unwind(AssertUnwindSafe(|| run(&handle.value))) {
            Ok(done) => done,
            Err(panic) => {
                handle.poisoned.store(true, Ordering::Release);
                std::panic::resume_unwind(panic)
            }
        }
    })
}

/// The value of a handle that is an argument.
///
/// # Safety
///
/// As [`with`]; the value is not used after the call.
pub(crate) unsafe fn argument<'a, H: Opaque + 'a>(pointer: *const H) -> Outcome<&'a H::Value> {
    // SAFETY: as this function's.
    unsafe { borrow(pointer) }.map(|handle| &handle.value)
}

/// # Safety
///
/// As [`with`].
unsafe fn borrow<'a, H: Opaque + 'a>(pointer: *const H) -> Outcome<&'a Handle<H::Value>> {
    if pointer.is_null() {
        return Err(Failure::invalid(format!("a {} is wanted, NULL was given", H::NAME)));
    }
    // SAFETY: not null, and alive by the caller's word.
    let handle = unsafe { &*pointer }.handle();
    handle.check()?;
    Ok(handle)
}

/// Where a new handle goes, checked before anything is done.
pub(crate) fn place<H>(out: *mut *mut H) -> Outcome<()> {
    match out.is_null() {
        true => Err(Failure::invalid("a place for the new handle is wanted, NULL was given")),
        false => Ok(()),
    }
}

/// Hands a new handle to the caller.
///
/// # Safety
///
/// `out` is not null ([`place`]) and may be written.
pub(crate) unsafe fn give<H: Opaque>(out: *mut *mut H, value: H::Value) {
    let handle = Box::new(H::wrap(Handle::new(value)));
    // SAFETY: as this function's.
    unsafe { *out = Box::into_raw(handle) };
}

/// Destroys a handle and nulls the caller's pointer. In a child after fork the pointer is nulled
/// and nothing else happens: rings and keys are the parent's.
///
/// # Safety
///
/// `pointer` is null, or points to null or to a handle as for [`with`] that nobody uses.
pub(crate) unsafe fn destroy<H: Opaque>(pointer: *mut *mut H) {
    if pointer.is_null() {
        return;
    }
    // SAFETY: as this function's.
    let handle = unsafe { std::mem::replace(&mut *pointer, std::ptr::null_mut()) };
    if handle.is_null() {
        return;
    }
    // SAFETY: it came from `give`, and nobody uses it.
    let handle = unsafe { Box::from_raw(handle) };
    if !fork::is_ours(handle.handle().generation) {
        std::mem::forget(handle);
        return;
    }
    call(|| {
        drop(handle);
        Ok(0)
    });
}

/// No struct of this library will ever be larger; a `size` that is was never set.
const STRUCT_BYTES_MAX: usize = 4096;

/// The `size` of a struct that the caller gave, at least that of its first version.
///
/// # Safety
///
/// `out` is null or points to a struct that begins with its size.
pub(crate) unsafe fn size_of_given<T>(out: *const T, first: usize) -> Outcome<usize> {
    if out.is_null() {
        return Err(Failure::invalid("a struct is wanted, NULL was given"));
    }
    // SAFETY: not null; every such struct begins with its size.
    let size = unsafe { out.cast::<usize>().read_unaligned() };
    match (first..=STRUCT_BYTES_MAX).contains(&size) {
        true => Ok(size),
        false => Err(Failure::invalid(format!("size is {size}: set it to sizeof, {first}"))),
    }
}

/// Fills a struct as far as the caller's version goes; what that has more is zero.
///
/// # Safety
///
/// `out` has `size` bytes; `value` begins with its size, and has no padding that matters.
pub(crate) unsafe fn write_sized<T>(out: *mut T, size: usize, value: &T) {
    let (own, bytes) = (size_of::<T>(), out.cast::<u8>());
    // SAFETY: as this function's.
    unsafe {
        bytes.copy_from_nonoverlapping((&raw const *value).cast(), size.min(own));
        bytes.add(size.min(own)).write_bytes(0, size - size.min(own));
    }
}

/// A C string that has to be there, in UTF-8.
///
/// # Safety
///
/// `text` is null or a string with a zero at its end, unchanged during the call.
pub(crate) unsafe fn text<'a>(name: &str, text: *const c_char) -> Outcome<&'a str> {
    if text.is_null() {
        return Err(Failure::invalid(format!("{name} is wanted, NULL was given")));
    }
    // SAFETY: as this function's.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Failure::invalid(format!("{name} is not UTF-8: {text:?}")))
}

/// A number that C gets as int.
pub(crate) fn int(result: i64) -> c_int {
    result as c_int
}

#[cfg(test)]
mod tests {
    use super::*;

    struct thing(Handle<u32>);
    opaque!(thing, u32);

    #[test]
    fn a_panic_is_an_error_and_poisons_its_handle() {
        let mut pointer: *mut thing = std::ptr::null_mut();
        // SAFETY: `pointer` may be written; the handle lives until `destroy`.
        unsafe {
            give(&mut pointer, 7);
            assert_eq!(with(pointer, |value| Ok(i64::from(*value))), 7);
            let panicked = with(pointer, |_| panic!("this test's own"));
            assert_eq!(panicked, -i64::from(SEALANE_E_PANIC));
            assert_eq!(with(pointer, |_| Ok(0)), -i64::from(SEALANE_E_PANIC));
            destroy(&mut pointer);
            assert!(pointer.is_null());
            destroy(&mut pointer);
            destroy(std::ptr::null_mut::<*mut thing>());
            assert_eq!(with(pointer, |_| Ok(0)), -i64::from(libc::EINVAL));
        }
    }
}

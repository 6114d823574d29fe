//! Streams: ordered bytes, sealed, over connected sockets.

use std::ffi::{c_char, c_int, c_void};
use std::io::{IoSliceMut, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};

use sealane::memory::LiveSlice;
use sealane::stream::Stream;

use crate::Failure;
use crate::fence::{Handle, Outcome, destroy, int, opaque, size_of_given, text, with, write_sized};

/// Ordered bytes in both directions. Any thread may call any function, one reader and one
/// writer beside each other; a second reader, or writer, waits for the first. It is destroyed
/// when no thread is in a call: sealane_stream_shutdown(SHUT_RDWR) wakes them.
pub struct sealane_stream(Handle<Stream>);
opaque!(sealane_stream, Stream);

/// Bytes of `sealane_stream_statistics` in its first version.
const STATISTICS_FIRST: usize = 64;
/// Most buffers of one call (IOV_MAX).
const BUFFERS_MAX: c_int = 1024;

/// What a stream did. Set `size` to sizeof(struct sealane_stream_statistics) before the call: a
/// newer library fills no more than that.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct sealane_stream_statistics {
    /// Bytes of this struct, set by the caller.
    pub size: usize,
    /// Bytes that were written.
    pub sent_bytes: u64,
    /// Frames that left.
    pub sent_frames: u64,
    /// Bytes that were opened.
    pub received_bytes: u64,
    /// Frames that came.
    pub received_frames: u64,
    /// System calls that moved or waited for bytes.
    pub system_calls: u64,
    /// Sends of which the kernel reports that it did not copy them.
    pub zero_copy_kept: u64,
    /// Zero-copy sends that it copied after all.
    pub zero_copy_copied: u64,
}

/// Writes buffers, as writev(2): a blocking stream takes all of it, a non-blocking one what there
/// is room for. What was taken is with the kernel and needs no further call. Full frames are
/// sealed and sent one behind the other; what is left goes out at once. A guest may write to the
/// bytes meanwhile: each is sent as it was at some moment of the call.
///
/// Returns the bytes taken; -EAGAIN; -EPIPE after a shutdown, or where the connection has ended;
/// -EINVAL for more than 1024 buffers. The stream takes nothing more after an error but -EAGAIN.
///
/// # Safety
///
/// `stream` is alive; `buffers` are `count` buffers whose bytes stay during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_stream_writev(
    stream: *const sealane_stream,
    buffers: *const libc::iovec,
    count: c_int,
) -> libc::ssize_t {
    // SAFETY: `stream` and `buffers` as this function's.
    unsafe {
        with(stream, |stream| {
            let list: Vec<_> = parts(buffers, count)?
                .map(|(base, bytes)| LiveSlice::from_raw(base, bytes))
                .collect();
            Ok(stream.write_live(&list)? as i64)
        }) as libc::ssize_t
    }
}

/// Reads what is there into buffers, as readv(2): at least one byte, 0 at the end of the stream
/// (and for buffers without room). No two buffers overlap.
///
/// Returns the bytes read; -EAGAIN; -SEALANE_E_CLOSED where the connection ended before the stream
/// did, which is no end of it; -SEALANE_E_UNSEAL; -SEALANE_E_REFUSED with the other end's reason in
/// sealane_last_error. The stream reads nothing more after an error but -EAGAIN.
///
/// # Safety
///
/// `stream` is alive; `buffers` are `count` buffers that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_stream_readv(
    stream: *const sealane_stream,
    buffers: *const libc::iovec,
    count: c_int,
) -> libc::ssize_t {
    // SAFETY: `stream` and `buffers` as this function's.
    unsafe {
        with(stream, |stream| {
            let mut list: Vec<_> = parts(buffers, count)?
                .map(|(base, bytes)| IoSliceMut::new(std::slice::from_raw_parts_mut(base, bytes)))
                .collect();
            Ok(stream.read_vectored(&mut list)? as i64)
        }) as libc::ssize_t
    }
}

/// As sealane_stream_readv into one buffer, but leaves the bytes for the next read. It looks beyond
/// one frame up to 4096 bytes.
///
/// # Safety
///
/// `stream` is alive; `bytes` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_stream_peek(
    stream: *const sealane_stream,
    bytes: *mut c_void,
    length: usize,
) -> libc::ssize_t {
    let buffer = libc::iovec { iov_base: bytes, iov_len: length };
    // SAFETY: `stream` and `bytes` as this function's.
    unsafe {
        with(stream, |stream| {
            let (base, bytes) = parts(&raw const buffer, 1)?.next().expect("one");
            Ok(stream.peek(std::slice::from_raw_parts_mut(base, bytes))? as i64)
        }) as libc::ssize_t
    }
}

/// Buffers with a base that a slice may have, or why they are none.
///
/// # Safety
///
/// `buffers` are `count` buffers that stay as they are.
unsafe fn parts<'a>(
    buffers: *const libc::iovec,
    count: c_int,
) -> Outcome<impl Iterator<Item = (*mut u8, usize)> + 'a> {
    if !(0..=BUFFERS_MAX).contains(&count) || (buffers.is_null() && count > 0) {
        return Err(Failure::invalid(format!("{count} buffers: 0 to {BUFFERS_MAX} are wanted")));
    }
    let list: &[libc::iovec] = match count {
        0 => &[],
        // SAFETY: not null, so `count` buffers by the caller's word.
        _ => unsafe { std::slice::from_raw_parts(buffers, count as usize) },
    };
    if list.iter().any(|part| part.iov_base.is_null() && part.iov_len > 0) {
        return Err(Failure::invalid("a buffer is NULL and has a length"));
    }
    let total = list.iter().try_fold(0usize, |sum, part| sum.checked_add(part.iov_len));
    if total.is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Failure::invalid("buffers of more than SSIZE_MAX bytes"));
    }
    let dangling = std::ptr::NonNull::<u8>::dangling().as_ptr();
    Ok(list.iter().map(move |part| match part.iov_base.is_null() {
        true => (dangling, 0),
        false => (part.iov_base.cast(), part.iov_len),
    }))
}

/// Whether all that was written is with the kernel, which is so when a write has returned.
///
/// Returns 0, or the error that the stream had.
///
/// # Safety
///
/// `stream` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_stream_flush(stream: *const sealane_stream) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(stream, |mut stream| {
            stream.flush()?;
            Ok(0)
        })
    })
}

/// Ends directions, as shutdown(2) with SHUT_RD, SHUT_WR, SHUT_RDWR, from any thread; those that
/// wait in a read or a write wake. SHUT_WR says the end to the other end; SHUT_RDWR says it where
/// that needs no wait. While a thread is in a write neither says it, and the other end sees an
/// error.
///
/// Returns 0; -EAGAIN for SHUT_WR on a non-blocking stream without room, which has changed nothing;
/// what kept the end from being said.
///
/// # Safety
///
/// `stream` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_stream_shutdown(
    stream: *const sealane_stream,
    how: c_int,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(stream, |stream| {
            let how = match how {
                libc::SHUT_RD => Shutdown::Read,
                libc::SHUT_WR => Shutdown::Write,
                libc::SHUT_RDWR => Shutdown::Both,
                _ => return Err(Failure::invalid(format!("how {how}: SHUT_* is wanted"))),
            };
            stream.shutdown(how)?;
            Ok(0)
        })
    })
}

/// Gives the stream up in both directions, at once; the other end reads an error with this reason
/// (up to 1024 bytes of UTF-8), where that needs no wait. Reads at this end give
/// -SEALANE_E_CANCELLED, but 0 where the end of the stream was read before.
///
/// Returns 0 or -EINVAL.
///
/// # Safety
///
/// `stream` is alive; `reason` is a string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_stream_cancel(
    stream: *const sealane_stream,
    reason: *const c_char,
) -> c_int {
    // SAFETY: `stream` as this function's, and so `reason`.
    int(unsafe {
        with(stream, |stream| {
            stream.cancel(text("a reason", reason)?);
            Ok(0)
        })
    })
}

/// Whether reads and writes return -EAGAIN where they would wait for the other end. A call that is
/// waiting goes on, and any call in the same direction from another thread waits for it. Off at
/// first.
///
/// Returns 0 or -EINVAL.
///
/// # Safety
///
/// `stream` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_stream_set_nonblocking(
    stream: *const sealane_stream,
    nonblocking: bool,
) -> c_int {
    // SAFETY: as this function's.
    int(unsafe {
        with(stream, |stream| {
            stream.set_nonblocking(nonblocking);
            Ok(0)
        })
    })
}

/// A descriptor that is readable (POLLIN) whenever a read would not wait; it may be readable too
/// where only a part of a frame has come and the read gives -EAGAIN. The stream's: do not close it.
/// The first call waits for a read that is going on.
///
/// Returns the descriptor, or -errno.
///
/// # Safety
///
/// `stream` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_stream_read_fd(stream: *const sealane_stream) -> c_int {
    // SAFETY: as this function's.
    int(unsafe { with(stream, |stream| Ok(stream.read_ready_fd()?.as_raw_fd().into())) })
}

/// A descriptor that is writable (POLLOUT) when a write would take something. The stream's: do not
/// close it, and read or write nothing.
///
/// Returns the descriptor, or -EINVAL.
///
/// # Safety
///
/// `stream` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_stream_write_fd(stream: *const sealane_stream) -> c_int {
    // SAFETY: as this function's.
    int(unsafe { with(stream, |stream| Ok(stream.as_fd().as_raw_fd().into())) })
}

/// Its number among the streams of its session, from 0.
///
/// Returns it, or -EINVAL.
///
/// # Safety
///
/// `stream` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_stream_number(stream: *const sealane_stream) -> c_int {
    // SAFETY: as this function's.
    int(unsafe { with(stream, |stream| Ok(stream.number().into())) })
}

/// What it did until now. Waits for a read and a write that are going on.
///
/// Returns 0; -EINVAL where `size` is less than its first version's.
///
/// # Safety
///
/// `stream` is alive; `statistics` may be read and written for the `size` that it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_stream_get_statistics(
    stream: *const sealane_stream,
    statistics: *mut sealane_stream_statistics,
) -> c_int {
    // SAFETY: `stream` and `statistics` as this function's.
    int(unsafe {
        with(stream, |stream| {
            let size = size_of_given(statistics, STATISTICS_FIRST)?;
            let figures = stream.statistics();
            let own = sealane_stream_statistics {
                size,
                sent_bytes: figures.sent_bytes,
                sent_frames: figures.sent_frames,
                received_bytes: figures.received_bytes,
                received_frames: figures.received_frames,
                system_calls: figures.engine.system_calls,
                zero_copy_kept: figures.engine.zero_copy_kept,
                zero_copy_copied: figures.engine.zero_copy_copied,
            };
            write_sized(statistics, size, &own);
            Ok(0)
        })
    })
}

/// Destroys a stream and nulls the pointer. Without sealane_stream_shutdown(SHUT_WR) before, the
/// other end sees an error. With zero-copy sends under way it waits for them, at most 2 seconds.
/// NULL, and a pointer to NULL, are no error.
///
/// # Safety
///
/// `stream` is null, or points to null or to a stream that nobody uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sealane_stream_destroy(stream: *mut *mut sealane_stream) {
    // SAFETY: as this function's.
    unsafe { destroy(stream) }
}

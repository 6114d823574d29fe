/*
 * Sealane: moves a running virtual machine from host to host, sealed. See sealane(3).
 *
 * Functions return 0 or a count, or a negative number: -errno, or one of the SEALANE_E_ numbers
 * with a minus; sealane_last_error() then says more. -EINVAL means that nothing was done.
 *
 * Handles are made by one function and destroyed by another, which nulls the pointer. A handle is
 * alive from the function that made it until it is destroyed, which nobody does while another
 * thread is in a call with it. What a handle's type says of threads holds for each function that
 * takes it; functions without a handle may be called by any thread. After fork a handle is the
 * parent's: the child's calls return -SEALANE_E_FORKED, and a child that does not exec keeps the
 * sockets open.
 *
 * Strings end with a zero and are UTF-8. Bytes and structs that a call reads do not change
 * meanwhile, but those of sealane_stream_writev and of regions, which a running guest may write to.
 * Threads of the library take no signals. The library prints nothing and sets no signal. Of the
 * environment two of its parts read a variable each: aws-lc OPENSSL_ia32cap (OPENSSL_armcap) when it
 * is loaded, Rust's standard library RUST_MIN_STACK when the first thread starts. aws-lc allocates by
 * OPENSSL_memory_alloc and its companions where the program defines them for a BoringSSL. What
 * aborts the process (memory that is not to be had) says so on standard error.
 *
 * Made by cbindgen from the Rust sources: change those.
 */

#ifndef SEALANE_H
#define SEALANE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

// Version of this header: major.
#define SEALANE_VERSION_MAJOR 0

// Version of this header: minor.
#define SEALANE_VERSION_MINOR 1

// Version of this header: patch.
#define SEALANE_VERSION_PATCH 0

// Version of this header as a number that grows with it: major << 16 | minor << 8 | patch.
#define SEALANE_VERSION_NUMBER (((SEALANE_VERSION_MAJOR << 16) | (SEALANE_VERSION_MINOR << 8)) | SEALANE_VERSION_PATCH)

// Fastest for this CPU; an error on a CPU without AES instructions.
#define SEALANE_PROVIDER_AUTO 0

// AWS-LC.
#define SEALANE_PROVIDER_AWS_LC 1

// ring.
#define SEALANE_PROVIDER_RING 2

// RustCrypto's aes-gcm; runs without AES instructions too, slowly.
#define SEALANE_PROVIDER_AES_GCM 3

// io_uring; an error where the kernel refuses it.
#define SEALANE_ENGINE_URING 0

// send, recv, pread, pwrite.
#define SEALANE_ENGINE_SYSCALLS 1

// Tried, kept where the kernel reports that it did not copy. Streams do without, and log it,
// where the limit of locked memory is too low.
#define SEALANE_ZERO_COPY_AUTO 0

// An error where the kernel copies.
#define SEALANE_ZERO_COPY_REQUIRE 1

// Plain sends.
#define SEALANE_ZERO_COPY_OFF 2

// The other end does not hold the secret, or was not shown to be the host that was expected.
#define SEALANE_E_NOT_AUTHENTICATED 4097

// The connection ended before the stream or the session did.
#define SEALANE_E_CLOSED 4098

// Nothing came from the other end for too long.
#define SEALANE_E_SILENT 4099

// The other end broke the protocol.
#define SEALANE_E_PROTOCOL 4100

// The other end refused, or gave up, and said why.
#define SEALANE_E_REFUSED 4101

// A frame did not verify: changed, replayed or reordered on its way.
#define SEALANE_E_UNSEAL 4102

// A setting that cannot be honoured as it stands.
#define SEALANE_E_CONFIG 4103

// This end cancelled.
#define SEALANE_E_CANCELLED 4104

// The other end cancelled.
#define SEALANE_E_CANCELLED_BY_PEER 4105

// The source let go and did not hear that the target took over: look at the target.
#define SEALANE_E_IN_DOUBT 4106

// A bug of the library, now or in an earlier call on this handle, which serves no more.
#define SEALANE_E_PANIC 4107

// The handle was made before a fork by the parent, whose it remains.
#define SEALANE_E_FORKED 4108

// A wrong call that ended the session, or kept it from being made.
#define SEALANE_E_MISUSE 4109

// This end connected the socket.
#define SEALANE_SIDE_CONNECTED 1

// This end accepted the connection.
#define SEALANE_SIDE_ACCEPTED 2

// Errors alone.
#define SEALANE_LOG_ERROR 1

// And warnings.
#define SEALANE_LOG_WARNING 2

// And what happens once in a session.
#define SEALANE_LOG_INFO 3

// And what happens in each round, with strangers, and to connections.
#define SEALANE_LOG_DEBUG 4

// This end is the migration's source.
#define SEALANE_ROLE_SOURCE 1

// This end is the migration's target.
#define SEALANE_ROLE_TARGET 2

// The connection wants to open a session: sealane_streams_answer.
#define SEALANE_ASKS_OPEN 1

// The connection wants to join the session: sealane_streams_admit.
#define SEALANE_ASKS_JOIN 2

// Ends waits of this library from another thread. Any thread may use it, and it may be
// destroyed once the call that took it has returned.
struct sealane_canceller;

// This host's certificates, its CA and the peer that is expected, as they were when they were
// read. Any thread may use it, and it may be destroyed once the call that took it has returned.
struct sealane_certificates;

// Settings. Any thread may use it, and it may be changed or destroyed once the call that took
// it has returned.
struct sealane_config;

// Where this end's connections go, or come from. Any thread may use it, for any number of
// sessions, and it may be destroyed once the call that took it has returned.
struct sealane_dialler;

// A handshake under way. Any thread may use it.
struct sealane_handshake;

// Authenticated connections of a migration, until a source or a target takes them. Any thread may
// use it.
struct sealane_lanes;

// Waits for the other end. Several threads may wait at once, each for a migration of another name
// (sealane_config_set_migration_name). Sessions that it accepted go on without it.
struct sealane_listener;

// Memory of a guest that both ends know by the same name. It may be destroyed once the call that
// took it has returned; the memory behind it stays in use until the migration has ended. Any
// thread may use it.
struct sealane_region;

// What both ends hold, for one migration. Any thread may use it, and it may be destroyed once
// the call that took it has returned.
struct sealane_secret;

// Sends a guest: rounds, the commit, the handover. One thread at a time is in a call; another
// waits for it. The canceller that it was started with ends a call from any thread.
struct sealane_source;

// Ordered bytes in both directions. Any thread may call any function, one reader and one
// writer beside each other; a second reader, or writer, waits for the first. It is destroyed
// when no thread is in a call: sealane_stream_shutdown(SHUT_RDWR) wakes them.
struct sealane_stream;

// A session of streams: the first connection shows who is there, the others join it. Any
// thread may use it; streams outlive it.
struct sealane_streams;

// Receives a guest. One thread at a time is in a call; another waits for it. The canceller that
// it was started with ends a call from any thread.
struct sealane_target;

// What this end shows who it is by, and knows the other end by. Any thread may use it, and it may
// be destroyed once the call that took it has returned.
struct sealane_trust;

// What this machine has. Set `size` to sizeof(struct sealane_doctor) before the call.
struct sealane_doctor {
  // Bytes of this struct, set by the caller.
  size_t size;
  // The errno of making a ring as a lane does; 0 where io_uring can be used.
  int32_t uring_errno;
  // sysctl kernel.io_uring_disabled; -1 where the kernel has no such setting.
  int32_t uring_disabled;
  // Operations of io_uring that are wanted and missing; without them the engine is `syscalls`.
  uint32_t operations_missing;
  // 1 where zero-copy send (IORING_OP_SEND_ZC) is there.
  uint32_t send_zc;
  // 1 where the CPU has what the default provider needs.
  uint32_t aes;
  // 1 where the limit of locked memory does not hold for this process (CAP_IPC_LOCK).
  uint32_t memlock_unlimited;
  // The limit of locked memory (RLIMIT_MEMLOCK), UINT64_MAX without one.
  uint64_t memlock_bytes;
  // How far it can be raised without privilege.
  uint64_t memlock_hard_bytes;
  // Locked memory that a lane takes with the default settings.
  uint64_t lane_locked_bytes;
};

// Gets a line of UTF-8, which lives as long as the call. Called by any thread that is in the
// library or of it, several at a time. It does not throw, does not leave by longjmp, and calls no
// function of this library but sealane_last_error.
typedef void (*sealane_log_callback)(void *data, int level, const char *text);

// How far an end of a migration is. Set `size` to sizeof(struct sealane_progress) before the
// call. The numbers only grow.
struct sealane_progress {
  // Bytes of this struct, set by the caller.
  size_t size;
  // Pages whose content was carried, of all rounds.
  uint64_t data_pages;
  // Pages that were zero, of all rounds.
  uint64_t zero_pages;
  // Rounds whose pages the target has placed.
  uint64_t rounds;
};

// What a round did. Set `size` to sizeof(struct sealane_round) before the call.
struct sealane_round {
  // Bytes of this struct, set by the caller.
  size_t size;
  // Its number, from 0.
  uint32_t round;
  // Pages that it carried, zero pages too.
  uint64_t pages;
  // Microseconds from the call until the target had placed it all.
  uint64_t elapsed_us;
};

// Consecutive pages of a region.
struct sealane_run {
  // Which region, by its place in the array that the source was started with.
  size_t region;
  // Index of its first page.
  uint64_t first_page;
  // How many pages.
  uint64_t pages;
};

// What an end of a migration did, all lanes together. Set `size` to
// sizeof(struct sealane_statistics) before the call.
struct sealane_statistics {
  // Bytes of this struct, set by the caller.
  size_t size;
  // Lanes.
  uint64_t lanes;
  // Frames.
  uint64_t frames;
  // Bytes on the wire.
  uint64_t wire_bytes;
  // Pages whose content was carried.
  uint64_t data_pages;
  // Pages that were zero.
  uint64_t zero_pages;
  // System calls that moved or waited for bytes.
  uint64_t system_calls;
  // Sends of which the kernel reports that it did not copy them.
  uint64_t zero_copy_kept;
  // Zero-copy sends that it copied after all.
  uint64_t zero_copy_copied;
};

// What a stream did. Set `size` to sizeof(struct sealane_stream_statistics) before the call: a
// newer library fills no more than that.
struct sealane_stream_statistics {
  // Bytes of this struct, set by the caller.
  size_t size;
  // Bytes that were written.
  uint64_t sent_bytes;
  // Frames that left.
  uint64_t sent_frames;
  // Bytes that were opened.
  uint64_t received_bytes;
  // Frames that came.
  uint64_t received_frames;
  // System calls that moved or waited for bytes.
  uint64_t system_calls;
  // Sends of which the kernel reports that it did not copy them.
  uint64_t zero_copy_kept;
  // Zero-copy sends that it copied after all.
  uint64_t zero_copy_copied;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the library that is linked, as `0.1.0`. Valid for ever; any thread.
const char *sealane_version(void);

// The version of the library that is linked, as SEALANE_VERSION_NUMBER is that of the header it
// was compiled with. Any thread.
uint32_t sealane_version_number(void);

// New settings with their defaults.
//
// Returns 0 or a negative error.
//
// Caller: `out` is null or may be written.
int sealane_config_new(struct sealane_config **out);

// Destroys settings and nulls the pointer. NULL, and a pointer to NULL, are no error.
//
// Caller: `config` is null, or points to null or to settings that nobody uses.
void sealane_config_destroy(struct sealane_config **config);

// Sets one setting by its name: the setters' names after `sealane_config_set_`, with their units;
// words for provider (`auto`, `aws-lc`, `ring`, `aes-gcm`), engine (`uring`, `syscalls`),
// zero_copy (`auto`, `require`, `off`) and sqpoll (`on`, `off`), decimal numbers for the rest.
//
// Returns 0; -SEALANE_E_CONFIG for an unknown key or a value that is none of it.
//
// Caller: `config` is alive; `key` and `value` are strings.
int sealane_config_set(struct sealane_config *config, const char *key, const char *value);

// Connections of a migration, 1 to 64. Default 1; the source decides. Streams do not use it.
//
// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
//
// Caller: `config` is alive.
int sealane_config_set_lanes(struct sealane_config *config, uint16_t lanes);

// Payload bytes of a full frame, a multiple of 4096 from 65536 to 1048576. Default 262144; the
// source decides.
//
// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
//
// Caller: `config` is alive.
int sealane_config_set_frame_bytes(struct sealane_config *config, size_t bytes);

// Frames that one lane's pool holds, 2 to 64. Default 3.
//
// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
//
// Caller: `config` is alive.
int sealane_config_set_slots_per_lane(struct sealane_config *config, size_t slots);

// Bytes per second that all lanes of a migration may send together, 0 for no limit. Default 0.
//
// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
//
// Caller: `config` is alive.
int sealane_config_set_bandwidth_bytes_per_s(struct sealane_config *config, uint64_t bytes);

// Who does the AES-GCM: SEALANE_PROVIDER_*. Default SEALANE_PROVIDER_AUTO.
//
// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
//
// Caller: `config` is alive.
int sealane_config_set_provider(struct sealane_config *config, int provider);

// How bytes are moved: SEALANE_ENGINE_*. Default SEALANE_ENGINE_URING.
//
// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
//
// Caller: `config` is alive.
int sealane_config_set_engine(struct sealane_config *config, int engine);

// Zero-copy send: SEALANE_ZERO_COPY_*. Default SEALANE_ZERO_COPY_AUTO.
//
// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
//
// Caller: `config` is alive.
int sealane_config_set_zero_copy(struct sealane_config *config, int zero_copy);

// Whether a kernel thread polls each lane's ring. Default false.
//
// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
//
// Caller: `config` is alive.
int sealane_config_set_sqpoll(struct sealane_config *config, bool sqpoll);

// How long a handshake may take, in milliseconds. Default 10000.
//
// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
//
// Caller: `config` is alive.
int sealane_config_set_handshake_timeout_ms(struct sealane_config *config, uint64_t ms);

// How long the other end of a migration may be silent, in milliseconds, at least 1000. Default
// 30000. Streams do not use it.
//
// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
//
// Caller: `config` is alive.
int sealane_config_set_peer_timeout_ms(struct sealane_config *config, uint64_t ms);

// Bytes of the kernel's send and receive buffer of each TCP connection, 0 for autotuning.
// Default 0.
//
// Returns 0; -SEALANE_E_CONFIG where the value is out of range.
//
// Caller: `config` is alive.
int sealane_config_set_socket_buffer_bytes(struct sealane_config *config, size_t bytes);

// TCP congestion control of the connections at this end, as tcp(7) names it; NULL or "" for the
// system's. Default the system's.
//
// Returns 0 or -EINVAL.
//
// Caller: `config` is alive; `name` is null or a string.
int sealane_config_set_congestion(struct sealane_config *config, const char *name);

// Name of the migration, the same at both ends: any text, for example the guest's UUID. Several
// may wait at one listener, each for a migration of another name. NULL or "" for none. Default
// none.
//
// Returns 0 or -EINVAL.
//
// Caller: `config` is alive; `name` is null or a string.
int sealane_config_set_migration_name(struct sealane_config *config, const char *name);

// Connections to a listener at `HOST:PORT`, `[V6]:PORT`, `unix:PATH` or `vsock:CID:PORT`, or the
// one connected socket `fd:N`, which is duplicated. A name is looked up for the first connection
// of a session, and its addresses are tried in turn; all others go to the one that answered.
//
// Returns 0; -SEALANE_E_CONFIG where it is no such address; -errno.
//
// Caller: `address` is null or a string; `out` is null or may be written.
int sealane_dialler_new(const char *address, struct sealane_dialler **out);

// Connections where both hosts dial at once, so that two firewalls which only let connections
// out are both content: from `local` (`ADDRESS:PORT` of this host) to `remote` (`HOST:PORT`). The
// other end gives the same two, exchanged, to sealane_listener_rendezvous. The connections of a
// session take consecutive ports at both ends, beginning with these. Another session may follow at
// once, as long as TCP's timestamps are on.
//
// Returns 0; -SEALANE_E_CONFIG where these are no such addresses, or the same one; -errno.
//
// Caller: `local` and `remote` are null or strings; `out` is null or may be written.
int sealane_dialler_rendezvous(const char *local, const char *remote, struct sealane_dialler **out);

// Connections that somebody else made: connected stream sockets of any family, used in their
// order, each once. A session needs one for each lane or stream; a call that finds none left
// fails. The descriptors are duplicated: close yours when you like, and leave the sockets' flags
// and options alone.
//
// Returns 0; -EINVAL without any; -SEALANE_E_CONFIG where one is no connected stream socket;
// -errno.
//
// Caller: `fds` is null or has `count` numbers; `out` is null or may be written.
int sealane_dialler_sockets(const int *fds, size_t count, struct sealane_dialler **out);

// Lets connections to HOST:PORT leave from `ADDRESS`, from `ADDRESS:PORT`, or from the ports of
// `ADDRESS:LOW-HIGH` or `:LOW-HIGH`, both included, for firewalls that tell connections by where
// they come from. ADDRESS is one of this host's, as a number. A session needs a port for each of
// its connections. Concerns the sessions that are begun later.
//
// Returns 0; -SEALANE_E_CONFIG where it is no such thing, or these connections have no such
// address; nothing has changed then.
//
// Caller: `dialler` is alive; `from` is null or a string.
int sealane_dialler_bind(struct sealane_dialler *dialler, const char *from);

// Destroys a dialler and nulls the pointer; sessions that it began go on. NULL, and a pointer to
// NULL, are no error.
//
// Caller: `dialler` is null, or points to null or to a dialler that nobody uses.
void sealane_dialler_destroy(struct sealane_dialler **dialler);

// Looks at this machine.
//
// Returns 0; -EINVAL where `size` is less than its first version's.
//
// Caller: `doctor` is null or as its `size` says.
int sealane_doctor_run(struct sealane_doctor *doctor);

// Who seals with the default settings, `aws-lc-rs` for one; "" on a CPU without AES instructions.
// Valid for ever.
const char *sealane_doctor_provider(void);

// What the last call of this thread that failed has to say: what was found, what was wanted, and
// what can be done. UTF-8, one line; empty before the first failure. Valid until this thread's
// next call that fails.
const char *sealane_last_error(void);

// As sealane_streams_open (`side` SEALANE_SIDE_CONNECTED) or sealane_streams_answer
// (SEALANE_SIDE_ACCEPTED), and returns at once: see sealane_handshake_fd and
// sealane_handshake_finish. A thread of the library waits meanwhile; it takes
// no signals.
//
// Returns 0; -EINVAL, -errno.
//
// Caller: The handles are alive, `config` may be null; `out` is null or may be written.
int sealane_handshake_start(int side,
                            int fd,
                            int role,
                            const struct sealane_trust *trust,
                            const struct sealane_config *config,
                            struct sealane_handshake **out);

// As sealane_streams_join (SEALANE_SIDE_CONNECTED) or sealane_streams_admit
// (SEALANE_SIDE_ACCEPTED), and returns at once, as sealane_handshake_start.
//
// Returns 0; -EINVAL, -errno.
//
// Caller: `streams` is alive; `out` is null or may be written.
int sealane_handshake_join(int side,
                           const struct sealane_streams *streams,
                           int fd,
                           struct sealane_handshake **out);

// A descriptor that is readable (POLLIN) once the handshake is over, well or not. The handshake's:
// do not close it.
//
// Returns the descriptor, or -EINVAL.
//
// Caller: `handshake` is alive.
int sealane_handshake_fd(const struct sealane_handshake *handshake);

// What the handshake came to. Both places get a handle of their own; `out_streams` may be NULL, as
// for one that joined a session that is there.
//
// Returns 0; -EINPROGRESS while it is under way; what sealane_streams_open and
// sealane_streams_join return; -EINVAL where it was asked before and not under way.
//
// Caller: `handshake` is alive; `out_stream` may be written, `out_streams` is null or may be written.
int sealane_handshake_finish(const struct sealane_handshake *handshake,
                             struct sealane_streams **out_streams,
                             struct sealane_stream **out_stream);

// Destroys a handshake and nulls the pointer; one that is under way is given up, which takes up to
// 50 milliseconds. NULL, and a pointer to NULL, are no error.
//
// Caller: `handshake` is null, or points to null or to a handshake that nobody uses.
void sealane_handshake_destroy(struct sealane_handshake **handshake);

// Connects as the dialler says and opens all lanes of a migration.
//
// `config` NULL: the defaults. `canceller` NULL: none.
//
// Returns 0; -SEALANE_E_NOT_AUTHENTICATED, -SEALANE_E_REFUSED, -SEALANE_E_CANCELLED,
// -SEALANE_E_CONFIG, -errno; -SEALANE_E_MISUSE where fewer sockets were passed than there are
// lanes.
//
// Caller: The handles are alive, or null where that is allowed; `out` is null or may be written.
int sealane_lanes_dial(const struct sealane_dialler *dialler,
                       int role,
                       const struct sealane_trust *trust,
                       const struct sealane_config *config,
                       const struct sealane_canceller *canceller,
                       struct sealane_lanes **out);

// Waits for a peer that is trusted and opens all lanes of a migration. Strangers do not end the
// wait, nor does a peer with the wrong role or limits, which is told so; only the canceller does.
// Threads may wait at one listener beside each other, each for a migration of another name.
//
// `config` NULL: the defaults. `canceller` NULL: none.
//
// Returns 0; -SEALANE_E_CANCELLED, -SEALANE_E_CONFIG, -errno; -SEALANE_E_MISUSE where another
// thread waits for a migration of the same name, or no socket that was passed is left.
//
// Caller: As sealane_lanes_dial.
int sealane_lanes_accept(const struct sealane_listener *listener,
                         int role,
                         const struct sealane_trust *trust,
                         const struct sealane_config *config,
                         const struct sealane_canceller *canceller,
                         struct sealane_lanes **out);

// How many lanes there are.
//
// Returns the number; -EINVAL where a source or a target has taken them.
//
// Caller: `lanes` is alive.
int sealane_lanes_count(const struct sealane_lanes *lanes);

// Who seals them, as sealane_doctor_provider names it. Valid for ever.
//
// Returns the name; NULL where a source or a target has taken them, or for another error.
//
// Caller: `lanes` is alive.
const char *sealane_lanes_provider(const struct sealane_lanes *lanes);

// Payload bytes of a full frame, as both ends agreed.
//
// Returns them; -EINVAL where a source or a target has taken the lanes.
//
// Caller: `lanes` is alive.
ssize_t sealane_lanes_frame_bytes(const struct sealane_lanes *lanes);

// Destroys lanes and nulls the pointer; those that a source or a target took go on. NULL, and a
// pointer to NULL, are no error.
//
// Caller: `lanes` is null, or points to null or to lanes that nobody uses.
void sealane_lanes_destroy(struct sealane_lanes **lanes);

// Listens at `ADDRESS:PORT` (`0.0.0.0:7800`, `[::]:7800`; port 0 for any), `unix:PATH`,
// `vsock:CID:PORT` or `vsock:any:PORT`, or with a listening socket that was passed to this
// process: `fd:N`, which is duplicated, or `systemd` (socket activation).
//
// A unix socket's file has mode 0600 and goes with the listener; one that nobody listens at is
// replaced.
//
// Returns 0; -SEALANE_E_CONFIG where it is no such address or the socket does not listen; -errno.
//
// Caller: `address` is null or a string; `out` is null or may be written.
int sealane_listener_bind(const char *address, struct sealane_listener **out);

// The end of sealane_dialler_rendezvous that lets the other speak first.
//
// Returns 0; -SEALANE_E_CONFIG where these are no such addresses, or the same one; -errno.
//
// Caller: `local` and `remote` are null or strings; `out` is null or may be written.
int sealane_listener_rendezvous(const char *local,
                                const char *remote,
                                struct sealane_listener **out);

// Connections that were accepted elsewhere: connected stream sockets of any family, taken in
// their order, each once. The descriptors are duplicated, as in sealane_dialler_sockets.
//
// Returns 0; -EINVAL without any; -SEALANE_E_CONFIG where one is no connected stream socket;
// -errno.
//
// Caller: `fds` is null or has `count` numbers; `out` is null or may be written.
int sealane_listener_sockets(const int *fds, size_t count, struct sealane_listener **out);

// The TCP port that it got.
//
// Returns it; -EINVAL where it does not listen by TCP.
//
// Caller: `listener` is alive.
int sealane_listener_port(const struct sealane_listener *listener);

// Destroys a listener and nulls the pointer. NULL, and a pointer to NULL, are no error.
//
// Caller: `listener` is null, or points to null or to a listener that nobody uses.
void sealane_listener_destroy(struct sealane_listener **listener);

// Lets the library tell what it does to a callback, up to SEALANE_LOG_*; NULL for silence, which
// is the default. One callback for the process; a call of the one before may still be going on
// when this returns, so its data outlives it.
//
// Returns 0; -EINVAL for no level.
//
// Caller: `callback` may be called from any thread with `data` until it was replaced.
int sealane_set_log(int level, sealane_log_callback callback, void *data);

// How far a source is. Any thread may ask while another is in a call, and after the end of the
// migration; it waits for nobody.
//
// Returns 0; -EINVAL where `size` is less than its first version's.
//
// Caller: `source` is alive; `progress` is null or as its `size` says.
int sealane_source_progress(const struct sealane_source *source, struct sealane_progress *progress);

// How far a target is. Any thread may ask while another is in a call, and after the end of the
// migration; it waits for nobody.
//
// Returns 0; -EINVAL where `size` is less than its first version's.
//
// Caller: `target` is alive; `progress` is null or as its `size` says.
int sealane_target_progress(const struct sealane_target *target, struct sealane_progress *progress);

// `bytes` of a file from `offset`: a memfd, or a file on tmpfs or disk. The descriptor is
// duplicated. `offset` is a multiple of 4096. A memfd is sealed against shrinking
// (F_SEAL_SHRINK, fcntl(2)) where that is still allowed, and then mapped.
//
// Returns 0; -EINVAL where the range does not lie in the file; -errno.
//
// Caller: `name` is null or a string; `out` is null or may be written.
int sealane_region_from_fd(const char *name,
                           int fd,
                           uint64_t offset,
                           uint64_t bytes,
                           struct sealane_region **out);

// `bytes` of this process's memory at `address`, both multiples of 4096. It is mapped readable,
// and at a target writable, and cannot be truncated, until the migration has ended and this is
// destroyed; the guest may write to it at any time.
//
// Returns 0 or -EINVAL.
//
// Caller: As above; `name` is null or a string; `out` is null or may be written.
int sealane_region_from_memory(const char *name,
                               void *address,
                               size_t bytes,
                               struct sealane_region **out);

// Destroys a region and nulls the pointer. NULL, and a pointer to NULL, are no error.
//
// Caller: `region` is null, or points to null or to a region that nobody uses.
void sealane_region_destroy(struct sealane_region **region);

// Makes a secret of 32 random bytes.
//
// Returns 0 or a negative error.
//
// Caller: `out` is null or may be written.
int sealane_secret_generate(struct sealane_secret **out);

// A secret of 32 to 64 bytes. They are copied; erase yours.
//
// Returns 0; -SEALANE_E_CONFIG for another length.
//
// Caller: `out` is null or may be written; `bytes` is null or has `length` bytes.
int sealane_secret_from_bytes(const uint8_t *bytes, size_t length, struct sealane_secret **out);

// Reads a secret from a file that nobody but its owner may read: hex digits, or a line
// identity:hex as in QEMU's keys.psk.
//
// Returns 0; -SEALANE_E_CONFIG where others may read it or it holds no secret; -errno.
//
// Caller: `out` is null or may be written; `path` is null or a string.
int sealane_secret_read(const char *path, struct sealane_secret **out);

// Reads the secret of one identity from such a file of several lines identity:hex.
//
// Returns 0; -SEALANE_E_CONFIG where others may read it or it has not one line of that identity;
// -errno.
//
// Caller: `out` is null or may be written; `path` and `identity` are null or strings.
int sealane_secret_read_identity(const char *path,
                                 const char *identity,
                                 struct sealane_secret **out);

// Writes a secret to a new file with mode 0600.
//
// Returns 0; -EEXIST where there is a file; -errno.
//
// Caller: `secret` is alive; `path` is null or a string.
int sealane_secret_write_new(const struct sealane_secret *secret, const char *path);

// Destroys a secret, erases its bytes and nulls the pointer. NULL, and a pointer to NULL, are no
// error.
//
// Caller: `secret` is null, or points to null or to a secret that nobody uses.
void sealane_secret_destroy(struct sealane_secret **secret);

// A new canceller.
//
// Returns 0 or a negative error.
//
// Caller: `out` is null or may be written.
int sealane_canceller_new(struct sealane_canceller **out);

// Ends every wait that was given this canceller, with -SEALANE_E_CANCELLED, and those to come. A
// name lookup that is under way is not interrupted; after sealane_source_hand_over has let go, or
// sealane_target_ready has returned, it does nothing.
//
// Returns 0 or -EINVAL.
//
// Caller: `canceller` is alive.
int sealane_canceller_cancel(const struct sealane_canceller *canceller);

// Destroys a canceller and nulls the pointer; waits that were given it go on. NULL, and a pointer
// to NULL, are no error.
//
// Caller: `canceller` is null, or points to null or to a canceller that nobody uses.
void sealane_canceller_destroy(struct sealane_canceller **canceller);

// Offers regions over lanes and waits until the target takes them. The lanes are taken unless
// -EINVAL or -SEALANE_E_FORKED is returned.
//
// `config` NULL: the defaults. `canceller` NULL: none.
//
// Returns 0; -SEALANE_E_REFUSED with the target's reason; -SEALANE_E_MISUSE where two regions have
// the same name; -EINVAL, -SEALANE_E_CANCELLED, -errno.
//
// Caller: The handles are alive, or null where that is allowed; `list` has `count` of them; `out` is null
// or may be written.
int sealane_source_start(const struct sealane_lanes *lanes,
                         const struct sealane_region *const *list,
                         size_t count,
                         const struct sealane_config *config,
                         const struct sealane_canceller *canceller,
                         struct sealane_source **out);

// Sends all pages of all regions, as a first round does, and waits until the target has placed
// them: a barrier. `report` may be NULL.
//
// Returns 0; -EINVAL after the commit; what ended the session.
//
// Caller: `source` is alive; `report` is null or as its `size` says.
int sealane_source_send_all(const struct sealane_source *source, struct sealane_round *report);

// Sends runs of pages and waits until the target has placed them: a barrier. Runs may come in any
// order and overlap; `report` may be NULL.
//
// Returns 0; -EINVAL where a run does not lie in its region, or after the commit; what ended the
// session.
//
// Caller: `source` is alive; `runs` has `count` runs; `report` is null or as its `size` says.
int sealane_source_send_runs(const struct sealane_source *source,
                             const struct sealane_run *runs,
                             size_t count,
                             struct sealane_round *report);

// Sends the pages whose bits are set, one bitmap for each region in their order, as KVM's dirty
// log gives them (a bit a page, 64 to a word, no bit past the last page), and waits until the
// target has placed them: a barrier. `report` may be NULL.
//
// Returns 0; -EINVAL where `count` is not that of the regions, where a bit past a region's end is
// set, or after the commit; what ended the session.
//
// Caller: `source` is alive; `bitmaps` has `count` bitmaps, each of as many words as its region's pages
// take; `report` is null or as its `size` says.
int sealane_source_send_bitmaps(const struct sealane_source *source,
                                const uint64_t *const *bitmaps,
                                size_t count,
                                struct sealane_round *report);

// Sends the device state (at most 64 MiB), says that this was all, and waits until the target has
// it and calls itself ready (sealane_target_ready). The guest stands still by now.
//
// Returns 0; -EINVAL for more state, or after a commit; what ended the session.
//
// Caller: `source` is alive; `state` has `bytes` bytes, or is null where that is 0.
int sealane_source_commit(const struct sealane_source *source, const void *state, size_t bytes);

// Lets go of the guest: after this call it must not run here any more, whatever is returned but
// an error from before the handover. The source does nothing more. `statistics` may be NULL.
//
// Returns 0 once the target has taken it; -SEALANE_E_IN_DOUBT where it does not confirm: look at
// the target before anything is started again, and so after -SEALANE_E_PANIC;
// -SEALANE_E_CANCELLED and others from before.
//
// Caller: `source` is alive; `statistics` is null or as its `size` says.
int sealane_source_hand_over(const struct sealane_source *source,
                             struct sealane_statistics *statistics);

// Destroys a source and nulls the pointer. Before the handover that cancels: the guest is this
// end's, and the target is told. NULL, and a pointer to NULL, are no error.
//
// Caller: `source` is null, or points to null or to a source that nobody uses.
void sealane_source_destroy(struct sealane_source **source);

// Writes buffers, as writev(2): a blocking stream takes all of it, a non-blocking one what there
// is room for. What was taken is with the kernel and needs no further call. Full frames are
// sealed and sent one behind the other; what is left goes out at once. A guest may write to the
// bytes meanwhile: each is sent as it was at some moment of the call.
//
// Returns the bytes taken; -EAGAIN; -EPIPE after a shutdown, or where the connection has ended;
// -EINVAL for more than 1024 buffers. The stream takes nothing more after an error but -EAGAIN.
//
// Caller: `stream` is alive; `buffers` are `count` buffers whose bytes stay during the call.
ssize_t sealane_stream_writev(const struct sealane_stream *stream,
                              const struct iovec *buffers,
                              int count);

// Reads what is there into buffers, as readv(2): at least one byte, 0 at the end of the stream
// (and for buffers without room). No two buffers overlap.
//
// Returns the bytes read; -EAGAIN; -SEALANE_E_CLOSED where the connection ended before the stream
// did, which is no end of it; -SEALANE_E_UNSEAL; -SEALANE_E_REFUSED with the other end's reason in
// sealane_last_error. The stream reads nothing more after an error but -EAGAIN.
//
// Caller: `stream` is alive; `buffers` are `count` buffers that may be written.
ssize_t sealane_stream_readv(const struct sealane_stream *stream,
                             const struct iovec *buffers,
                             int count);

// As sealane_stream_readv into one buffer, but leaves the bytes for the next read. It looks beyond
// one frame up to 4096 bytes.
//
// Caller: `stream` is alive; `bytes` has room for `length` bytes.
ssize_t sealane_stream_peek(const struct sealane_stream *stream, void *bytes, size_t length);

// Whether all that was written is with the kernel, which is so when a write has returned.
//
// Returns 0, or the error that the stream had.
//
// Caller: `stream` is alive.
int sealane_stream_flush(const struct sealane_stream *stream);

// Ends directions, as shutdown(2) with SHUT_RD, SHUT_WR, SHUT_RDWR, from any thread; those that
// wait in a read or a write wake. SHUT_WR says the end to the other end; SHUT_RDWR says it where
// that needs no wait. While a thread is in a write neither says it, and the other end sees an
// error.
//
// Returns 0; -EAGAIN for SHUT_WR on a non-blocking stream without room, which has changed nothing;
// what kept the end from being said.
//
// Caller: `stream` is alive.
int sealane_stream_shutdown(const struct sealane_stream *stream, int how);

// Gives the stream up in both directions, at once; the other end reads an error with this reason
// (up to 1024 bytes of UTF-8), where that needs no wait. Reads at this end give
// -SEALANE_E_CANCELLED, but 0 where the end of the stream was read before.
//
// Returns 0 or -EINVAL.
//
// Caller: `stream` is alive; `reason` is a string.
int sealane_stream_cancel(const struct sealane_stream *stream, const char *reason);

// Whether reads and writes return -EAGAIN where they would wait for the other end. A call that is
// waiting goes on, and any call in the same direction from another thread waits for it. Off at
// first.
//
// Returns 0 or -EINVAL.
//
// Caller: `stream` is alive.
int sealane_stream_set_nonblocking(const struct sealane_stream *stream, bool nonblocking);

// A descriptor that is readable (POLLIN) whenever a read would not wait; it may be readable too
// where only a part of a frame has come and the read gives -EAGAIN. The stream's: do not close it.
// The first call waits for a read that is going on.
//
// Returns the descriptor, or -errno.
//
// Caller: `stream` is alive.
int sealane_stream_read_fd(const struct sealane_stream *stream);

// A descriptor that is writable (POLLOUT) when a write would take something. The stream's: do not
// close it, and read or write nothing.
//
// Returns the descriptor, or -EINVAL.
//
// Caller: `stream` is alive.
int sealane_stream_write_fd(const struct sealane_stream *stream);

// Its number among the streams of its session, from 0.
//
// Returns it, or -EINVAL.
//
// Caller: `stream` is alive.
int sealane_stream_number(const struct sealane_stream *stream);

// What it did until now. Waits for a read and a write that are going on.
//
// Returns 0; -EINVAL where `size` is less than its first version's.
//
// Caller: `stream` is alive; `statistics` may be read and written for the `size` that it says.
int sealane_stream_get_statistics(const struct sealane_stream *stream,
                                  struct sealane_stream_statistics *statistics);

// Destroys a stream and nulls the pointer. Without sealane_stream_shutdown(SHUT_WR) before, the
// other end sees an error. With zero-copy sends under way it waits for them, at most 2 seconds.
// NULL, and a pointer to NULL, are no error.
//
// Caller: `stream` is null, or points to null or to a stream that nobody uses.
void sealane_stream_destroy(struct sealane_stream **stream);

// Opens a session over a connected stream socket (TCP, AF_UNIX), as the end that connected it.
// Waits until the other end has shown who it is, at most the settings'
// handshake_timeout_ms. The descriptor is duplicated: close yours when you like, and leave the
// socket's flags and options alone.
//
// `config` NULL: the defaults. `canceller` NULL: none.
//
// Returns 0; -SEALANE_E_NOT_AUTHENTICATED, -SEALANE_E_REFUSED, -SEALANE_E_CANCELLED,
// -SEALANE_E_CONFIG, -errno. Nothing is made then.
//
// Caller: The handles are alive, or null where that is allowed; the places may be written.
int sealane_streams_open(int fd,
                         int role,
                         const struct sealane_trust *trust,
                         const struct sealane_config *config,
                         const struct sealane_canceller *canceller,
                         struct sealane_streams **out_streams,
                         struct sealane_stream **out_stream);

// As sealane_streams_open, as the end that accepted the connection.
//
// Caller: As sealane_streams_open.
int sealane_streams_answer(int fd,
                           int role,
                           const struct sealane_trust *trust,
                           const struct sealane_config *config,
                           const struct sealane_canceller *canceller,
                           struct sealane_streams **out_streams,
                           struct sealane_stream **out_stream);

// Opens a session over a connection that the dialler makes. As sealane_streams_open;
// sealane_streams_dial_next makes the session's other streams.
//
// Returns as sealane_streams_open; -SEALANE_E_MISUSE where no socket that was passed is left.
//
// Caller: As sealane_streams_open; `dialler` is alive.
int sealane_streams_dial(const struct sealane_dialler *dialler,
                         int role,
                         const struct sealane_trust *trust,
                         const struct sealane_config *config,
                         const struct sealane_canceller *canceller,
                         struct sealane_streams **out_streams,
                         struct sealane_stream **out_stream);

// Opens a session over a connection that comes to a listener, and waits for it. Strangers do not
// end the wait, nor does a peer with the wrong role, which is told so; only the canceller does.
// sealane_streams_accept_next waits for the session's other streams.
//
// Returns as sealane_lanes_accept.
//
// Caller: As sealane_streams_open.
int sealane_streams_accept(const struct sealane_listener *listener,
                           int role,
                           const struct sealane_trust *trust,
                           const struct sealane_config *config,
                           const struct sealane_canceller *canceller,
                           struct sealane_streams **out_streams,
                           struct sealane_stream **out_stream);

// Waits for the first bytes of a connection that this end accepted and leaves them there, for
// who does not know which of the two comes. At most the settings' handshake_timeout_ms.
//
// `config` NULL: the defaults. `canceller` NULL: none.
//
// Returns SEALANE_ASKS_OPEN or SEALANE_ASKS_JOIN; -SEALANE_E_NOT_AUTHENTICATED where the other end
// speaks something else, TLS for one; -SEALANE_E_CANCELLED, -errno.
//
// Caller: `config` and `canceller` are alive, or null.
int sealane_streams_asks(int fd,
                         const struct sealane_config *config,
                         const struct sealane_canceller *canceller);

// One more stream of the session over a connected socket, as the end that connected it. As
// sealane_streams_open.
//
// Returns 0; -SEALANE_E_CLOSED where the other end does not answer; -EINVAL after 4096 streams;
// else as sealane_streams_open.
//
// Caller: As sealane_streams_open.
int sealane_streams_join(const struct sealane_streams *streams,
                         int fd,
                         const struct sealane_canceller *canceller,
                         struct sealane_stream **out_stream);

// One more stream of the session over a connected socket, as the end that accepted it. As
// sealane_streams_open; a stranger's connection is -SEALANE_E_NOT_AUTHENTICATED: close it and go
// on.
//
// Caller: As sealane_streams_open.
int sealane_streams_admit(const struct sealane_streams *streams,
                          int fd,
                          const struct sealane_canceller *canceller,
                          struct sealane_stream **out_stream);

// One more stream of a session that sealane_streams_dial began, over one more connection of its
// dialler's, to the host that the first one reached.
//
// Returns as sealane_streams_join; -EINVAL where the session was not begun so, or no socket that
// was passed is left.
//
// Caller: As sealane_streams_open.
int sealane_streams_dial_next(const struct sealane_streams *streams,
                              const struct sealane_canceller *canceller,
                              struct sealane_stream **out_stream);

// Waits for one more stream of a session that sealane_streams_accept began at this listener. Only
// the canceller ends the wait.
//
// Returns 0; -SEALANE_E_CANCELLED; -errno; -SEALANE_E_MISUSE where the session was begun
// otherwise, or no socket that was passed is left.
//
// Caller: As sealane_streams_open.
int sealane_streams_accept_next(const struct sealane_streams *streams,
                                const struct sealane_listener *listener,
                                const struct sealane_canceller *canceller,
                                struct sealane_stream **out_stream);

// Says that the migration is complete: the secret opens no other session in this process.
//
// Returns 0 or -EINVAL.
//
// Caller: `streams` is alive.
int sealane_streams_complete(const struct sealane_streams *streams);

// Writes the 16 bytes of a name of this migration that both ends know and nobody else.
//
// Returns 0 or -EINVAL.
//
// Caller: `streams` is alive; `id` has room for 16 bytes.
int sealane_streams_migration_id(const struct sealane_streams *streams, uint8_t *id);

// Who seals them, as sealane_doctor_provider names it. Valid for ever.
//
// Returns the name; NULL for an error.
//
// Caller: `streams` is alive.
const char *sealane_streams_provider(const struct sealane_streams *streams);

// Payload bytes of a full frame, as both ends agreed.
//
// Returns them, or -EINVAL.
//
// Caller: `streams` is alive.
ssize_t sealane_streams_frame_bytes(const struct sealane_streams *streams);

// Destroys a session and nulls the pointer; its streams go on. NULL, and a pointer to NULL, are no
// error.
//
// Caller: `streams` is null, or points to null or to a session that nobody uses.
void sealane_streams_destroy(struct sealane_streams **streams);

// Waits over lanes for the source's offer. The lanes are taken unless -EINVAL or
// -SEALANE_E_FORKED is returned.
//
// `config` NULL: the defaults. `canceller` NULL: none.
//
// Returns 0; -EINVAL, -SEALANE_E_CANCELLED, -errno; what ended the session.
//
// Caller: The handles are alive, or null where that is allowed; `out` is null or may be written.
int sealane_target_start(const struct sealane_lanes *lanes,
                         const struct sealane_config *config,
                         const struct sealane_canceller *canceller,
                         struct sealane_target **out);

// How many regions the source offers.
//
// Returns the number, or -EINVAL.
//
// Caller: `target` is alive.
int sealane_target_offers(const struct sealane_target *target);

// A region that the source offers, by its place from 0: its size goes to `bytes`, its name with a
// zero at its end to `name`, which has room for `name_size` bytes (256 are always enough). Either
// may be NULL.
//
// Returns the length of the name; -EINVAL where there is no such region; -ENAMETOOLONG where there
// is no room for its name.
//
// Caller: `target` is alive; `name` is null or has room for `name_size` bytes; `bytes` is null or may be
// written.
int sealane_target_offer(const struct sealane_target *target,
                         size_t index,
                         char *name,
                         size_t name_size,
                         uint64_t *bytes);

// Takes the offer: pages go into these regions, which are the offered ones in any order.
//
// Returns 0; -EINVAL before anything is done; -SEALANE_E_MISUSE where one is missing, of another
// size or read-only: the source is told so and the session has ended; what ended the session.
//
// Caller: `target` is alive; `list` has `count` regions that are alive.
int sealane_target_accept(const struct sealane_target *target,
                          const struct sealane_region *const *list,
                          size_t count);

// Refuses the offer, or gives up later: the source gets the reason (up to 1024 bytes of UTF-8) and
// the session ends. Not after sealane_target_ready, when the guest is this end's.
//
// Returns 0 or -EINVAL.
//
// Caller: `target` is alive; `reason` is null or a string.
int sealane_target_refuse(const struct sealane_target *target, const char *reason);

// Receives rounds until the source has sent everything.
//
// Returns the bytes of the device state, which sealane_target_state copies; what ended the
// session.
//
// Caller: `target` is alive.
ssize_t sealane_target_receive(const struct sealane_target *target);

// Copies the device state, from its beginning, as much as there is room for.
//
// Returns the bytes copied; -EINVAL before sealane_target_receive.
//
// Caller: `target` is alive; `state` has room for `bytes` bytes.
ssize_t sealane_target_state(const struct sealane_target *target, void *state, size_t bytes);

// Says that everything is placed and safe, and waits until the source has let go. Only after this
// the guest may run here.
//
// Returns 0; what ended the session: the guest is the source's then.
//
// Caller: `target` is alive.
int sealane_target_ready(const struct sealane_target *target);

// Tells the source that the guest is taken. The target does nothing more. `statistics` may be
// NULL.
//
// Returns 0: the guest is this end's; -EINVAL where it is over already.
//
// Caller: `target` is alive; `statistics` is null or as its `size` says.
int sealane_target_done(const struct sealane_target *target, struct sealane_statistics *statistics);

// Destroys a target and nulls the pointer; before sealane_target_done that gives up, and between
// sealane_target_ready and that it leaves the source in doubt, though the guest is this end's.
// NULL, and a pointer to NULL, are no error.
//
// Caller: `target` is null, or points to null or to a target that nobody uses.
void sealane_target_destroy(struct sealane_target **target);

// Reads certificates from a directory as QEMU and libvirt lay it out: `ca-cert.pem`, `ca-crl.pem`
// where there is one, `client-cert.pem` and `client-key.pem` for the end that connects,
// `server-cert.pem` and `server-key.pem` for the end that accepts. One of the pairs suffices for
// its end.
//
// `peer` is the host that is expected at the other end, as its certificate names it: a DNS name or
// an IP address of its subjectAltName, or `sha256:` and its fingerprint. Any host of the CA has a
// certificate, so that one alone is no permission.
//
// Returns 0; -SEALANE_E_CONFIG where a certificate is out of its time, of another CA, revoked,
// without its key or not for its end, where others can read a key, where `peer` is no such name,
// or where the library was built without certificates; -errno.
//
// Caller: `directory` and `peer` are null or strings; `out` is null or may be written.
int sealane_certificates_from_directory(const char *directory,
                                        const char *peer,
                                        struct sealane_certificates **out);

// Reads one certificate for both ends, as far as its extended key usage allows: the files of the
// CA, of the certificate, of its key, and of what the CA has revoked, which may be NULL. As
// sealane_certificates_from_directory.
//
// Caller: The texts are null or strings; `out` is null or may be written.
int sealane_certificates_from_files(const char *ca,
                                    const char *cert,
                                    const char *key,
                                    const char *crl,
                                    const char *peer,
                                    struct sealane_certificates **out);

// Whether they serve this end of a connection (SEALANE_SIDE_*), before there is one: a directory
// may have a certificate for one end alone.
//
// Returns 0; -SEALANE_E_CONFIG or -errno where they do not; -EINVAL.
//
// Caller: `certificates` is alive.
int sealane_certificates_check(const struct sealane_certificates *certificates, int side);

// Destroys certificates and nulls the pointer. NULL, and a pointer to NULL, are no error.
//
// Caller: `certificates` is null, or points to null or to certificates that nobody uses.
void sealane_certificates_destroy(struct sealane_certificates **certificates);

// Trust by a secret (`certificates` NULL), by certificates (`secret` NULL), or by both: then
// whoever comes between must break both. The other end needs the same kind of trust.
//
// Returns 0; -EINVAL where both are NULL.
//
// Caller: The handles are alive or null; `out` is null or may be written.
int sealane_trust_new(const struct sealane_secret *secret,
                      const struct sealane_certificates *certificates,
                      struct sealane_trust **out);

// Destroys trust and nulls the pointer. NULL, and a pointer to NULL, are no error.
//
// Caller: `trust` is null, or points to null or to trust that nobody uses.
void sealane_trust_destroy(struct sealane_trust **trust);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SEALANE_H */

/*
 * A channel that is sealed by libsealane, over a connected stream socket.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sealane.h>

#include "io/channel-sealane.h"
#include "io/channel-socket.h"
#include "io/channel-util.h"
#include "io/channel-watch.h"
#include "qapi/error.h"
#include "qemu/atomic.h"
#include "qemu/error-report.h"
#include "qemu/module.h"
#include "qemu/thread.h"

struct QIOChannelSealane {
    QIOChannel parent;
    QIOChannel *master;
    SealaneCreds *creds;
    bool accepts;
    SealaneWay way;
    int fd; /* for the handshake; -1 after it */
    struct sealane_canceller *canceller;
    SealaneSession *session; /* until it is closed */
    /* Of the handshake's thread until it is open; goes with the channel. */
    struct sealane_stream *stream;
    bool open;        /* atomic */
    bool nonblocking; /* atomic */
    bool unwatchable; /* atomic */
    bool shut;        /* atomic: by this end, a handshake too */
    bool told;        /* atomic: why no read succeeds any more */
};

/* NULL while the handshake is not over. */
static struct sealane_stream *
qio_channel_sealane_opened(QIOChannelSealane *sioc)
{
    return qatomic_load_acquire(&sioc->open) ? sioc->stream : NULL;
}

static struct sealane_stream *qio_channel_sealane_stream(QIOChannel *ioc,
                                                         Error **errp)
{
    struct sealane_stream *stream =
        qio_channel_sealane_opened(QIO_CHANNEL_SEALANE(ioc));

    if (!stream) {
        error_setg(errp, "Sealane: the handshake of this channel is not over");
    }
    return stream;
}

/* What a call returned, as channels return it. */
static ssize_t qio_channel_sealane_result(ssize_t result, Error **errp)
{
    if (result >= 0) {
        return result;
    }
    if (result == -EAGAIN) {
        return QIO_CHANNEL_ERR_BLOCK;
    }
    error_setg(errp, "Sealane: %s", sealane_last_error());
    return -1;
}

/*
 * As qio_channel_sealane_result() of a read. QEMUFile keeps a number of what
 * it is told: that a byte was changed on its way must not end as an EIO.
 */
static ssize_t qio_channel_sealane_read_result(QIOChannelSealane *sioc,
                                               ssize_t result, Error **errp)
{
    if (result < 0 && result != -EAGAIN && !qatomic_xchg(&sioc->told, true)) {
        warn_report("%s: Sealane: %s", QIO_CHANNEL(sioc)->name ?: "channel",
                    sealane_last_error());
    }
    return qio_channel_sealane_result(result, errp);
}

static ssize_t qio_channel_sealane_writev(QIOChannel *ioc,
                                          const struct iovec *iov,
                                          size_t niov,
                                          int *fds,
                                          size_t nfds,
                                          int flags,
                                          Error **errp)
{
    struct sealane_stream *stream = qio_channel_sealane_stream(ioc, errp);

    if (!stream) {
        return -1;
    }
    return qio_channel_sealane_result(
        sealane_stream_writev(stream, iov, MIN(niov, IOV_MAX)), errp);
}

static ssize_t qio_channel_sealane_peek(struct sealane_stream *stream,
                                        const struct iovec *iov,
                                        size_t niov)
{
    size_t i;

    for (i = 0; i < niov; i++) {
        if (iov[i].iov_len) {
            return sealane_stream_peek(stream, iov[i].iov_base,
                                       iov[i].iov_len);
        }
    }
    return 0;
}

/*
 * QIO_CHANNEL_READ_FLAG_RELAXED_EOF, for sources that leave out the end of a
 * TLS session, changes nothing: every Sealane end says it.
 */
static ssize_t qio_channel_sealane_readv(QIOChannel *ioc,
                                         const struct iovec *iov,
                                         size_t niov,
                                         int **fds,
                                         size_t *nfds,
                                         int flags,
                                         Error **errp)
{
    QIOChannelSealane *sioc = QIO_CHANNEL_SEALANE(ioc);
    struct sealane_stream *stream = qio_channel_sealane_stream(ioc, errp);

    if (!stream) {
        return -1;
    }
    if (qatomic_read(&sioc->unwatchable)) {
        error_setg(errp, "Sealane: no descriptor left to watch this channel: "
                   "raise the limit of open files (ulimit -n)");
        return -1;
    }
    if (flags & QIO_CHANNEL_READ_FLAG_MSG_PEEK) {
        return qio_channel_sealane_read_result(
            sioc, qio_channel_sealane_peek(stream, iov, niov), errp);
    }
    return qio_channel_sealane_read_result(
        sioc, sealane_stream_readv(stream, iov, MIN(niov, IOV_MAX)), errp);
}

static int qio_channel_sealane_flush(QIOChannel *ioc, Error **errp)
{
    struct sealane_stream *stream = qio_channel_sealane_stream(ioc, errp);

    if (!stream) {
        return -1;
    }
    return qio_channel_sealane_result(sealane_stream_flush(stream), errp);
}

static int qio_channel_sealane_set_blocking(QIOChannel *ioc, bool enabled,
                                            Error **errp)
{
    struct sealane_stream *stream = qio_channel_sealane_stream(ioc, errp);

    if (!stream) {
        return -1;
    }
    qatomic_set(&QIO_CHANNEL_SEALANE(ioc)->nonblocking, !enabled);
    return qio_channel_sealane_result(
        sealane_stream_set_nonblocking(stream, !enabled), errp);
}

/*
 * Says the end where there is room for it now; else returns -EAGAIN. Who reads
 * at this moment may be told to wait and read again, as channels allow.
 */
static int qio_channel_sealane_try_end(QIOChannelSealane *sioc,
                                       struct sealane_stream *stream)
{
    int result;

    sealane_stream_set_nonblocking(stream, true);
    result = sealane_stream_shutdown(stream, SHUT_WR);
    sealane_stream_set_nonblocking(stream, qatomic_read(&sioc->nonblocking));
    return result;
}

int qio_channel_sealane_end(QIOChannelSealane *sioc, int64_t until_us,
                            Error **errp)
{
    struct sealane_stream *stream =
        qio_channel_sealane_stream(QIO_CHANNEL(sioc), errp);
    int result;

    if (!stream) {
        return -1;
    }
    while ((result = qio_channel_sealane_try_end(sioc, stream)) == -EAGAIN) {
        GPollFD room = {
            .fd = sealane_stream_write_fd(stream), .events = G_IO_OUT
        };
        int64_t left_ms = (until_us - g_get_monotonic_time()) / 1000;

        if (left_ms <= 0) {
            error_setg(errp, "Sealane: the other end has not read what was "
                       "written before: the end of the channel was not said");
            return -1;
        }
        g_poll(&room, 1, MIN(left_ms, 100));
    }
    if (result == -EPIPE || result == -SEALANE_E_CLOSED) {
        /* A target that has all it wants may have closed first. */
        return 0;
    }
    return qio_channel_sealane_result(result, errp);
}

/* Never waits, as QIOChannelClass wants it. */
static int qio_channel_sealane_shutdown(QIOChannel *ioc,
                                        QIOChannelShutdown how,
                                        Error **errp)
{
    QIOChannelSealane *sioc = QIO_CHANNEL_SEALANE(ioc);
    struct sealane_stream *stream;

    qatomic_set_mb(&sioc->shut, true);
    sealane_canceller_cancel(sioc->canceller);
    stream = qio_channel_sealane_opened(sioc);
    if (!stream) {
        return 0;
    }
    switch (how) {
    case QIO_CHANNEL_SHUTDOWN_READ:
        sealane_stream_shutdown(stream, SHUT_RD);
        return 0;
    case QIO_CHANNEL_SHUTDOWN_WRITE:
        if (qio_channel_sealane_try_end(sioc, stream) == -EAGAIN) {
            error_setg(errp, "Sealane: no room to say the end of the channel");
            return -1;
        }
        return 0;
    default:
        /* Its errors: the end was not said, which the other end sees. */
        sealane_stream_shutdown(stream, SHUT_RDWR);
        return 0;
    }
}

static int qio_channel_sealane_close(QIOChannel *ioc, Error **errp)
{
    QIOChannelSealane *sioc = QIO_CHANNEL_SEALANE(ioc);

    qio_channel_sealane_shutdown(ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    if (sioc->session) {
        sealane_creds_leave(sioc->creds, sioc->session);
        sioc->session = NULL;
    }
    return qio_channel_close(sioc->master, errp);
}

/*
 * The descriptor that is readable while a read would not wait. It costs two
 * system calls a frame from then on, so channels that only ever block do
 * without it.
 */
static int qio_channel_sealane_read_fd(QIOChannelSealane *sioc)
{
    struct sealane_stream *stream = qio_channel_sealane_opened(sioc);
    int fd = -1;

    if (!qatomic_read(&sioc->unwatchable)) {
        fd = sealane_stream_read_fd(stream);
    }
    if (fd < 0) {
        /* From now on the socket calls the reader, who is told. */
        qatomic_set(&sioc->unwatchable, true);
        fd = sealane_stream_write_fd(stream);
    }
    return fd;
}

static GSource *qio_channel_sealane_create_watch(QIOChannel *ioc,
                                                 GIOCondition condition)
{
    QIOChannelSealane *sioc = QIO_CHANNEL_SEALANE(ioc);
    struct sealane_stream *stream = qio_channel_sealane_opened(sioc);
    int out, in;

    if (!stream) {
        return qio_channel_create_watch(sioc->master, condition);
    }
    out = sealane_stream_write_fd(stream);
    in = condition & G_IO_IN ? qio_channel_sealane_read_fd(sioc) : out;
    return qio_channel_create_fd_pair_watch(ioc, in, out, condition);
}

static void qio_channel_sealane_set_aio_fd_handler(QIOChannel *ioc,
                                                   AioContext *read_ctx,
                                                   IOHandler *io_read,
                                                   AioContext *write_ctx,
                                                   IOHandler *io_write,
                                                   void *opaque)
{
    QIOChannelSealane *sioc = QIO_CHANNEL_SEALANE(ioc);
    struct sealane_stream *stream = qio_channel_sealane_opened(sioc);

    int out;

    if (stream) {
        out = sealane_stream_write_fd(stream);
        qio_channel_util_set_aio_fd_handler(
            read_ctx ? qio_channel_sealane_read_fd(sioc) : out, read_ctx,
            io_read, out, write_ctx, io_write, opaque);
    }
}

bool qio_channel_sealane_check(QIOChannel *master, SealaneCreds *creds,
                               QCryptoTLSCredsEndpoint endpoint, Error **errp)
{
    if (!sealane_creds_check_endpoint(creds, endpoint, errp)) {
        return false;
    }
    if (!object_dynamic_cast(OBJECT(master), TYPE_QIO_CHANNEL_SOCKET)) {
        error_setg(errp, "Sealane: a %s, where a connected stream socket is "
                   "wanted: migrate over tcp:, unix: or an fd: that is one",
                   object_get_typename(OBJECT(master)));
        return false;
    }
    return true;
}

static QIOChannelSealane *qio_channel_sealane_new(QIOChannel *master,
                                                  SealaneCreds *creds,
                                                  Error **errp)
{
    QIOChannelSealane *sioc;
    struct sealane_canceller *canceller = NULL;
    int fd;

    /* Of its own: the master may be closed while a thread shakes hands. */
    fd = fcntl(QIO_CHANNEL_SOCKET(master)->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) {
        error_setg_errno(errp, errno, "Sealane: cannot duplicate the socket");
        return NULL;
    }
    if (sealane_canceller_new(&canceller) < 0) {
        error_setg(errp, "Sealane: %s", sealane_last_error());
        close(fd);
        return NULL;
    }
    sioc = QIO_CHANNEL_SEALANE(object_new(TYPE_QIO_CHANNEL_SEALANE));
    sioc->master = QIO_CHANNEL(object_ref(OBJECT(master)));
    sioc->creds = SEALANE_CREDS(object_ref(OBJECT(creds)));
    sioc->fd = fd;
    sioc->canceller = canceller;
    QIO_CHANNEL(sioc)->follow_coroutine_ctx = master->follow_coroutine_ctx;
    qio_channel_set_feature(QIO_CHANNEL(sioc), QIO_CHANNEL_FEATURE_SHUTDOWN);
    return sioc;
}

QIOChannelSealane *qio_channel_sealane_new_client(QIOChannel *master,
                                                  SealaneCreds *creds,
                                                  SealaneWay way,
                                                  Error **errp)
{
    QIOChannelSealane *sioc = NULL;

    if (qio_channel_sealane_check(master, creds,
                                  QCRYPTO_TLS_CREDS_ENDPOINT_CLIENT, errp)) {
        sioc = qio_channel_sealane_new(master, creds, errp);
    }
    if (sioc) {
        sioc->way = way;
    }
    return sioc;
}

QIOChannelSealane *qio_channel_sealane_new_server(QIOChannel *master,
                                                  SealaneCreds *creds,
                                                  Error **errp)
{
    QIOChannelSealane *sioc;

    if (!qio_channel_sealane_check(master, creds,
                                   QCRYPTO_TLS_CREDS_ENDPOINT_SERVER, errp) ||
        !sealane_creds_hear(creds, errp)) {
        return NULL;
    }
    sioc = qio_channel_sealane_new(master, creds, errp);
    if (sioc) {
        sioc->accepts = true;
    } else {
        sealane_creds_heard(creds);
    }
    return sioc;
}

bool qio_channel_sealane_is_first(QIOChannelSealane *sioc)
{
    return sealane_stream_number(sioc->stream) == 0;
}

typedef struct SealaneHandshake {
    QIOTask *task;
    GMainContext *context;
    Error *err;
} SealaneHandshake;

static gboolean qio_channel_sealane_handshake_done(gpointer opaque)
{
    SealaneHandshake *handshake = opaque;
    QIOChannelSealane *sioc =
        QIO_CHANNEL_SEALANE(qio_task_get_source(handshake->task));

    if (handshake->err) {
        qio_task_set_error(handshake->task, handshake->err);
    } else if (qio_channel_sealane_is_first(sioc)) {
        sealane_creds_adopt(sioc->creds, sioc->session);
    }
    qio_task_complete(handshake->task);
    qio_task_free(handshake->task);
    if (handshake->context) {
        g_main_context_unref(handshake->context);
    }
    g_free(handshake);
    return G_SOURCE_REMOVE;
}

/* The handshake is over, or will not be. */
static void qio_channel_sealane_heard(QIOChannelSealane *sioc)
{
    if (sioc->fd >= 0) {
        close(sioc->fd);
        sioc->fd = -1;
        if (sioc->accepts) {
            sealane_creds_heard(sioc->creds);
        }
    }
}

static void qio_channel_sealane_shake_hands(QIOChannelSealane *sioc,
                                            Error **errp)
{
    struct sealane_stream *stream;

    if (sioc->accepts) {
        stream = sealane_creds_accept(sioc->creds, sioc->fd, sioc->canceller,
                                      &sioc->shut, &sioc->session, errp);
    } else {
        stream = sealane_creds_connect(sioc->creds, sioc->way, sioc->fd,
                                       sioc->canceller, &sioc->session, errp);
    }
    qio_channel_sealane_heard(sioc);
    if (!stream) {
        return;
    }
    sioc->stream = stream;
    qatomic_set_mb(&sioc->open, true);
    if (qatomic_read(&sioc->shut)) {
        /* Shut down when the handshake was just over. */
        sealane_stream_shutdown(stream, SHUT_RDWR);
    }
}

/*
 * Not qio_task_run_in_thread(): that tells the main loop by a source of idle
 * priority, which never runs while the incoming coroutine, yielding to itself,
 * waits for the postcopy-preempt channel.
 */
static void *qio_channel_sealane_handshake_thread(void *opaque)
{
    SealaneHandshake *handshake = opaque;
    GSource *source = g_idle_source_new();

    qio_channel_sealane_shake_hands(
        QIO_CHANNEL_SEALANE(qio_task_get_source(handshake->task)),
        &handshake->err);
    g_source_set_priority(source, G_PRIORITY_DEFAULT);
    g_source_set_callback(source, qio_channel_sealane_handshake_done,
                          handshake, NULL);
    g_source_attach(source, handshake->context);
    g_source_unref(source);
    return NULL;
}

void qio_channel_sealane_handshake(QIOChannelSealane *sioc,
                                   QIOTaskFunc func,
                                   gpointer opaque,
                                   GDestroyNotify destroy,
                                   GMainContext *context)
{
    SealaneHandshake *handshake = g_new0(SealaneHandshake, 1);
    QemuThread thread;

    handshake->task = qio_task_new(OBJECT(sioc), func, opaque, destroy);
    handshake->context = context ? g_main_context_ref(context) : NULL;
    qemu_thread_create(&thread, "sealane", qio_channel_sealane_handshake_thread,
                       handshake, QEMU_THREAD_DETACHED);
}

static void qio_channel_sealane_init(Object *obj)
{
    QIO_CHANNEL_SEALANE(obj)->fd = -1;
}

static void qio_channel_sealane_finalize(Object *obj)
{
    QIOChannelSealane *sioc = QIO_CHANNEL_SEALANE(obj);

    sealane_stream_destroy(&sioc->stream);
    sealane_canceller_destroy(&sioc->canceller);
    if (sioc->session) {
        sealane_creds_leave(sioc->creds, sioc->session);
    }
    qio_channel_sealane_heard(sioc);
    object_unref(OBJECT(sioc->creds));
    object_unref(OBJECT(sioc->master));
}

static void qio_channel_sealane_class_init(ObjectClass *klass,
                                           SealaneClassData *data)
{
    QIOChannelClass *ioc_klass = QIO_CHANNEL_CLASS(klass);

    ioc_klass->io_writev = qio_channel_sealane_writev;
    ioc_klass->io_readv = qio_channel_sealane_readv;
    ioc_klass->io_flush = qio_channel_sealane_flush;
    ioc_klass->io_set_blocking = qio_channel_sealane_set_blocking;
    ioc_klass->io_shutdown = qio_channel_sealane_shutdown;
    ioc_klass->io_close = qio_channel_sealane_close;
    ioc_klass->io_create_watch = qio_channel_sealane_create_watch;
    ioc_klass->io_set_aio_fd_handler = qio_channel_sealane_set_aio_fd_handler;
}

static const TypeInfo qio_channel_sealane_info = {
    .parent = TYPE_QIO_CHANNEL,
    .name = TYPE_QIO_CHANNEL_SEALANE,
    .instance_size = sizeof(QIOChannelSealane),
    .instance_init = qio_channel_sealane_init,
    .instance_finalize = qio_channel_sealane_finalize,
    .class_init = qio_channel_sealane_class_init,
};

static void qio_channel_sealane_register(void)
{
    type_register_static(&qio_channel_sealane_info);
}

type_init(qio_channel_sealane_register);

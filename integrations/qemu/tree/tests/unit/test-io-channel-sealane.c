/*
 * Channels sealed by libsealane: QEMU's conformance helper, and what it
 * leaves out.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sealane.h>

#include "crypto/init.h"
#include "io/channel-sealane.h"
#include "io/channel-socket.h"
#include "io-channel-helpers.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qom/object_interfaces.h"

static char *secret_file;

typedef struct Ends {
    SealaneCreds *creds[2];
    QIOChannel *client;
    QIOChannel *server;
} Ends;

typedef struct Handshake {
    bool over;
    Error *err;
} Handshake;

static SealaneCreds *creds_new(const char *id, const char *endpoint,
                               Error **errp)
{
    return (SealaneCreds *)object_new_with_props(
        TYPE_SEALANE_CREDS, object_get_objects_root(), id, errp,
        "endpoint", endpoint, "secret-file", secret_file, NULL);
}

static void handshake_over(QIOTask *task, gpointer opaque)
{
    Handshake *handshake = opaque;

    qio_task_propagate_error(task, &handshake->err);
    handshake->over = true;
}

static void sockets(QIOChannel *ends[2])
{
    int fds[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), ==, 0);
    ends[0] = QIO_CHANNEL(qio_channel_socket_new_fd(fds[0], &error_abort));
    ends[1] = QIO_CHANNEL(qio_channel_socket_new_fd(fds[1], &error_abort));
}

/* One more channel between the ends, the first of which opens the session. */
static void connect_ends(Ends *ends, SealaneWay way)
{
    QIOChannel *master[2];
    Handshake client = {}, server = {};

    sockets(master);
    ends->client = QIO_CHANNEL(qio_channel_sealane_new_client(
        master[0], ends->creds[0], way, &error_abort));
    ends->server = QIO_CHANNEL(qio_channel_sealane_new_server(
        master[1], ends->creds[1], &error_abort));
    object_unref(OBJECT(master[0]));
    object_unref(OBJECT(master[1]));
    qio_channel_sealane_handshake(QIO_CHANNEL_SEALANE(ends->client),
                                  handshake_over, &client, NULL, NULL);
    qio_channel_sealane_handshake(QIO_CHANNEL_SEALANE(ends->server),
                                  handshake_over, &server, NULL, NULL);
    while (!client.over || !server.over) {
        g_main_context_iteration(NULL, TRUE);
    }
    if (client.err) {
        error_report_err(client.err);
    }
    if (server.err) {
        error_report_err(server.err);
    }
    g_assert(!client.err && !server.err);
}

static void ends_open(Ends *ends)
{
    ends->creds[0] = creds_new("near", "client", &error_abort);
    ends->creds[1] = creds_new("far", "server", &error_abort);
    connect_ends(ends, SEALANE_OPENS);
}

static void ends_close(Ends *ends)
{
    qio_channel_close(ends->client, &error_abort);
    qio_channel_close(ends->server, &error_abort);
    object_unref(OBJECT(ends->client));
    object_unref(OBJECT(ends->server));
    object_unparent(OBJECT(ends->creds[0]));
    object_unparent(OBJECT(ends->creds[1]));
}

/* QEMU's own harness, in both directions. */
static void test_threads(gconstpointer blocking)
{
    Ends ends;
    QIOChannelTest *test;

    ends_open(&ends);
    test = qio_channel_test_new();
    qio_channel_test_run_threads(test, GPOINTER_TO_INT(blocking),
                                 ends.client, ends.server);
    qio_channel_test_validate(test);
    test = qio_channel_test_new();
    qio_channel_test_run_threads(test, GPOINTER_TO_INT(blocking),
                                 ends.server, ends.client);
    qio_channel_test_validate(test);
    ends_close(&ends);
}

static gboolean always(gpointer opaque)
{
    return G_SOURCE_CONTINUE;
}

/*
 * QEMU's incoming coroutine waits for the postcopy-preempt channel by yielding
 * to itself: the main loop always has something of its ordinary priority to do.
 */
static void test_busy_main_loop(void)
{
    Ends ends;
    guint tag = g_idle_add_full(G_PRIORITY_DEFAULT, always, NULL, NULL);

    ends_open(&ends);
    g_source_remove(tag);
    ends_close(&ends);
}

typedef struct Duplex {
    QIOChannel *one, *other;
} Duplex;

static gpointer run_harness(gpointer opaque)
{
    Duplex *duplex = opaque;
    QIOChannelTest *test = qio_channel_test_new();

    qio_channel_test_run_threads(test, true, duplex->one, duplex->other);
    qio_channel_test_validate(test);
    return NULL;
}

/* A writer and a reader on each end at the same time: the return path. */
static void test_duplex(void)
{
    Ends ends;
    GThread *threads[2];

    ends_open(&ends);
    Duplex there = { ends.client, ends.server };
    Duplex back = { ends.server, ends.client };
    threads[0] = g_thread_new("there", run_harness, &there);
    threads[1] = g_thread_new("back", run_harness, &back);
    g_thread_join(threads[0]);
    g_thread_join(threads[1]);
    ends_close(&ends);
}

static gboolean watched(QIOChannel *ioc, GIOCondition condition,
                        gpointer opaque)
{
    *(GIOCondition *)opaque |= condition;
    return G_SOURCE_REMOVE;
}

/* Bytes that were opened wait in the channel, where no socket shows them. */
static void test_watch_and_peek(void)
{
    Ends ends;
    char text[8] = "";
    struct iovec part = { text, 4 };
    GIOCondition seen = 0;
    guint tag;

    ends_open(&ends);
    qio_channel_set_blocking(ends.server, false, &error_abort);
    g_assert_cmpint(qio_channel_read(ends.server, text, 4, &error_abort), ==,
                    QIO_CHANNEL_ERR_BLOCK);
    tag = qio_channel_add_watch(ends.server, G_IO_IN, watched, &seen, NULL);
    g_assert(!g_main_context_iteration(NULL, FALSE));
    g_source_remove(tag);

    qio_channel_write_all(ends.client, "QEVMabcd", 8, &error_abort);
    while (!seen) {
        qio_channel_add_watch(ends.server, G_IO_IN, watched, &seen, NULL);
        g_main_context_iteration(NULL, TRUE);
    }
    g_assert_cmpint(seen, ==, G_IO_IN);
    g_assert(!qio_channel_has_feature(ends.server,
                                      QIO_CHANNEL_FEATURE_READ_MSG_PEEK));
    qio_channel_set_feature(ends.server, QIO_CHANNEL_FEATURE_READ_MSG_PEEK);
    g_assert_cmpint(qio_channel_readv_full(ends.server, &part, 1, NULL, NULL,
                                           QIO_CHANNEL_READ_FLAG_MSG_PEEK,
                                           &error_abort), ==, 4);
    g_assert_cmpstr(text, ==, "QEVM");
    g_assert_cmpint(qio_channel_read(ends.server, text, 4, &error_abort), ==,
                    4);
    g_assert_cmpstr(text, ==, "QEVM");
    /* Four more are there, though the socket has nothing. */
    seen = 0;
    qio_channel_add_watch(ends.server, G_IO_IN, watched, &seen, NULL);
    g_main_context_iteration(NULL, TRUE);
    g_assert_cmpint(seen, ==, G_IO_IN);
    g_assert_cmpint(qio_channel_read(ends.server, text, 8, &error_abort), ==,
                    4);
    g_assert_cmpstr(text, ==, "abcd");
    seen = 0;
    qio_channel_add_watch(ends.client, G_IO_OUT, watched, &seen, NULL);
    g_main_context_iteration(NULL, TRUE);
    g_assert_cmpint(seen, ==, G_IO_OUT);
    ends_close(&ends);
}

static gpointer read_until_shut(gpointer opaque)
{
    char byte;

    return GINT_TO_POINTER(qio_channel_read(opaque, &byte, 1, NULL) == 0);
}

static gpointer write_until_shut(gpointer opaque)
{
    static char block[1 << 20];
    Error *err = NULL;

    while (qio_channel_write_all(opaque, block, sizeof(block), &err) == 0) {
    }
    g_assert(err);
    error_free(err);
    return NULL;
}

static void test_shutdown_wakes(void)
{
    Ends ends;
    GThread *reader, *writer;

    ends_open(&ends);
    reader = g_thread_new("reader", read_until_shut, ends.client);
    writer = g_thread_new("writer", write_until_shut, ends.client);
    g_usleep(100 * 1000);
    qio_channel_shutdown(ends.client, QIO_CHANNEL_SHUTDOWN_BOTH, &error_abort);
    g_assert(GPOINTER_TO_INT(g_thread_join(reader)));
    g_thread_join(writer);
    ends_close(&ends);
}

static void test_end_and_truncation(void)
{
    Ends ends, cut;
    char byte;
    Error *err = NULL;

    ends_open(&ends);
    cut = ends;
    connect_ends(&cut, SEALANE_JOINS);
    qio_channel_write_all(ends.client, "x", 1, &error_abort);
    qio_channel_sealane_end(QIO_CHANNEL_SEALANE(ends.client), 0, &error_abort);
    g_assert_cmpint(qio_channel_read(ends.server, &byte, 1, &error_abort), ==,
                    1);
    g_assert_cmpint(qio_channel_read(ends.server, &byte, 1, &error_abort), ==,
                    0);
    /* Without an end, as when a process is killed. */
    object_unref(OBJECT(cut.client));
    g_assert_cmpint(qio_channel_readv_full(
        cut.server, &(struct iovec) { &byte, 1 }, 1, NULL, NULL,
        QIO_CHANNEL_READ_FLAG_RELAXED_EOF, &err), ==, -1);
    g_assert(strstr(error_get_pretty(err), "closed the connection"));
    error_free(err);
    object_unref(OBJECT(cut.server));
    ends_close(&ends);
}

/* An end that finds no room is said once there is some, or not waited for. */
static void test_end_without_room(void)
{
    static char block[1 << 20];
    Ends ends;
    Error *err = NULL;
    size_t written = 0, came = 0;
    ssize_t count;

    ends_open(&ends);
    qio_channel_set_blocking(ends.client, false, &error_abort);
    while ((count = qio_channel_write(ends.client, block, sizeof(block),
                                      &error_abort)) > 0) {
        written += count;
    }
    g_assert_cmpint(count, ==, QIO_CHANNEL_ERR_BLOCK);
    g_assert_cmpint(qio_channel_sealane_end(QIO_CHANNEL_SEALANE(ends.client),
                                            0, &err), ==, -1);
    g_assert(strstr(error_get_pretty(err), "has not read"));
    error_free(err);
    /* Nothing has changed by that. */
    while (came < written) {
        count = qio_channel_read(ends.server, block, sizeof(block),
                                 &error_abort);
        g_assert_cmpint(count, >, 0);
        came += count;
    }
    g_assert_cmpint(came, ==, written);
    qio_channel_sealane_end(QIO_CHANNEL_SEALANE(ends.client),
                            g_get_monotonic_time() + 10 * G_USEC_PER_SEC,
                            &error_abort);
    g_assert_cmpint(qio_channel_read(ends.server, block, sizeof(block),
                                     &error_abort), ==, 0);
    ends_close(&ends);
}

/* A target that has what it wants closes first, now and then. */
static void test_end_to_who_has_gone(void)
{
    Ends ends, gone;

    ends_open(&ends);
    gone = ends;
    connect_ends(&gone, SEALANE_JOINS);
    object_unref(OBJECT(gone.server));
    qio_channel_sealane_end(QIO_CHANNEL_SEALANE(gone.client),
                            g_get_monotonic_time() + 10 * G_USEC_PER_SEC,
                            &error_abort);
    object_unref(OBJECT(gone.client));
    ends_close(&ends);
}

static void handshake_fails(QIOChannelSealane *ioc, const char *text)
{
    Handshake handshake = {};

    qio_channel_sealane_handshake(ioc, handshake_over, &handshake, NULL, NULL);
    while (!handshake.over) {
        g_main_context_iteration(NULL, TRUE);
    }
    g_assert(handshake.err);
    g_assert_cmpint(strstr(error_get_pretty(handshake.err), text) != NULL, ==,
                    true);
    error_free(handshake.err);
    object_unref(OBJECT(ioc));
}

static void test_strangers(void)
{
    SealaneCreds *creds = creds_new("far", "server", &error_abort);
    QIOChannel *ends[2];
    QIOChannelSealane *shut;
    Error *err = NULL;

    sockets(ends);
    qio_channel_write_all(ends[0], "QEVM", 4, &error_abort);
    handshake_fails(qio_channel_sealane_new_server(ends[1], creds,
                                                   &error_abort), "QEMU");
    object_unref(OBJECT(ends[0]));
    object_unref(OBJECT(ends[1]));

    /* A handshake ends with a shutdown, long before its limit. */
    sockets(ends);
    shut = qio_channel_sealane_new_server(ends[1], creds, &error_abort);
    qio_channel_shutdown(QIO_CHANNEL(shut), QIO_CHANNEL_SHUTDOWN_BOTH,
                         &error_abort);
    handshake_fails(shut, "cancelled");
    object_unref(OBJECT(ends[0]));
    object_unref(OBJECT(ends[1]));

    sockets(ends);
    g_assert(!qio_channel_sealane_new_client(ends[0], creds, SEALANE_OPENS,
                                             &err));
    g_assert(strstr(error_get_pretty(err), "endpoint=client"));
    error_free(err);
    object_unref(OBJECT(ends[0]));
    object_unref(OBJECT(ends[1]));
    object_unparent(OBJECT(creds));
}

int main(int argc, char **argv)
{
    g_autofree char *directory = g_dir_make_tmp(NULL, NULL);
    struct sealane_secret *secret = NULL;
    int result;

    module_call_init(MODULE_INIT_QOM);
    qemu_init_main_loop(&error_abort);
    secret_file = g_build_filename(directory, "secret", NULL);
    g_assert_cmpint(sealane_secret_generate(&secret), ==, 0);
    g_assert_cmpint(sealane_secret_write_new(secret, secret_file), ==, 0);
    sealane_secret_destroy(&secret);

    g_test_init(&argc, &argv, NULL);
    g_test_add_data_func("/io/channel/sealane/blocking",
                         GINT_TO_POINTER(true), test_threads);
    g_test_add_data_func("/io/channel/sealane/non-blocking",
                         GINT_TO_POINTER(false), test_threads);
    g_test_add_func("/io/channel/sealane/busy-main-loop",
                    test_busy_main_loop);
    g_test_add_func("/io/channel/sealane/duplex", test_duplex);
    g_test_add_func("/io/channel/sealane/watch-and-peek", test_watch_and_peek);
    g_test_add_func("/io/channel/sealane/shutdown", test_shutdown_wakes);
    g_test_add_func("/io/channel/sealane/end", test_end_and_truncation);
    g_test_add_func("/io/channel/sealane/end-without-room",
                    test_end_without_room);
    g_test_add_func("/io/channel/sealane/end-to-who-has-gone",
                    test_end_to_who_has_gone);
    g_test_add_func("/io/channel/sealane/strangers", test_strangers);
    result = g_test_run();
    unlink(secret_file);
    rmdir(directory);
    g_free(secret_file);
    return result;
}

/*
 * A channel that is sealed by libsealane, over a connected stream socket.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QIO_CHANNEL_SEALANE_H
#define QIO_CHANNEL_SEALANE_H

#include "crypto/sealanecreds.h"
#include "io/channel.h"
#include "io/task.h"

#define TYPE_QIO_CHANNEL_SEALANE "qio-channel-sealane"
OBJECT_DECLARE_SIMPLE_TYPE(QIOChannelSealane, QIO_CHANNEL_SEALANE)

/**
 * qio_channel_sealane_check:
 *
 * Returns: whether @master can carry a channel of @creds at @endpoint; else
 * sets @errp: a mistake of the configuration, which no other connection mends.
 */
bool qio_channel_sealane_check(QIOChannel *master, SealaneCreds *creds,
                               QCryptoTLSCredsEndpoint endpoint, Error **errp);

/**
 * qio_channel_sealane_new_client:
 * @master: the connected socket; the channel takes a reference
 * @creds: what the other end is asked for
 * @way: whether it opens the session of @creds or joins it
 *
 * The channel carries nothing before qio_channel_sealane_handshake().
 *
 * Any thread may write while another reads; qio_channel_shutdown() from any
 * thread ends what waits, a handshake too. What was written is with the
 * kernel when the call returns, and guest memory may be written to meanwhile.
 * An end that was not said, by qio_channel_sealane_end() or, where there is
 * room for it, by a shutdown or a close, is an error at the other end, never
 * an end of file.
 *
 * With QIO_CHANNEL_FEATURE_READ_MSG_PEEK set it can be peeked at. It is not
 * set here: QEMU's migration peeks in its main loop, which at the same time
 * would have to accept the channels that the source waits for before it
 * sends anything. Without it channels are told apart by their order, which
 * handshakes keep.
 *
 * Returns: the channel, or NULL with @errp set.
 */
QIOChannelSealane *qio_channel_sealane_new_client(QIOChannel *master,
                                                  SealaneCreds *creds,
                                                  SealaneWay way,
                                                  Error **errp);

/**
 * qio_channel_sealane_new_server:
 *
 * As qio_channel_sealane_new_client() over a connection that was accepted; the
 * other end says whether it opens the session or joins it.
 */
QIOChannelSealane *qio_channel_sealane_new_server(QIOChannel *master,
                                                  SealaneCreds *creds,
                                                  Error **errp);

/**
 * qio_channel_sealane_handshake:
 * @func: called in @context when it is over, with the channel as the source
 *
 * Shakes hands in a thread of its own. Each wait for the other end is at most
 * 10 seconds: one for a client; for a server one for the first bytes, one for
 * the rest, and one where a channel that joins comes before its session.
 */
void qio_channel_sealane_handshake(QIOChannelSealane *ioc,
                                   QIOTaskFunc func,
                                   gpointer opaque,
                                   GDestroyNotify destroy,
                                   GMainContext *context);

/**
 * qio_channel_sealane_is_first:
 *
 * Returns: whether the channel opened its session. Once the handshake is over.
 */
bool qio_channel_sealane_is_first(QIOChannelSealane *ioc);

/**
 * qio_channel_sealane_end:
 * @until_us: until when it waits, by g_get_monotonic_time(); 0 for not at all
 *
 * Says the end of what is written, behind all that was written before. Where
 * the other end reads slowly it waits for room, until a shutdown ends that.
 * Who has closed already is told nothing, which is no error.
 *
 * Returns: 0, or -1 with @errp set.
 */
int qio_channel_sealane_end(QIOChannelSealane *ioc, int64_t until_us,
                            Error **errp);

#endif /* QIO_CHANNEL_SEALANE_H */

/*
 * Sealane credentials: what both ends of a migration know each other by, and
 * the session that was opened with it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QCRYPTO_SEALANECREDS_H
#define QCRYPTO_SEALANECREDS_H

#include "qapi/qapi-types-crypto.h"
#include "qom/object.h"

struct sealane_canceller;
struct sealane_stream;

/* What a class_init function gets: constant from QEMU 10.1 on. */
#if QEMU_VERSION_MAJOR == 10 && QEMU_VERSION_MINOR == 0
typedef void SealaneClassData;
#else
typedef const void SealaneClassData;
#endif

#define TYPE_SEALANE_CREDS "sealane-creds"
OBJECT_DECLARE_SIMPLE_TYPE(SealaneCreds, SEALANE_CREDS)

/*
 * One migration's session. Its first channel opened it, the others joined.
 * Whoever has a channel of it has a reference.
 */
typedef struct SealaneSession SealaneSession;

/* What an outgoing channel does with the session. */
typedef enum {
    SEALANE_OPENS,
    SEALANE_JOINS,
} SealaneWay;

/**
 * sealane_creds_check_endpoint:
 *
 * Returns: whether @creds were made for @endpoint; else sets @errp.
 */
bool sealane_creds_check_endpoint(SealaneCreds *creds,
                                  QCryptoTLSCredsEndpoint endpoint,
                                  Error **errp);

/**
 * sealane_creds_connect:
 * @fd: a connected stream socket, dialled by this end; stays the caller's
 * @canceller: ends it from another thread
 * @session: the session of the stream
 *
 * The handshake of one channel, from the end that connected. Waits for the
 * other end, at most 10 seconds: not for a main loop.
 *
 * Returns: a stream, or NULL with @errp set.
 */
struct sealane_stream *
sealane_creds_connect(SealaneCreds *creds,
                      SealaneWay way,
                      int fd,
                      const struct sealane_canceller *canceller,
                      SealaneSession **session,
                      Error **errp);

/**
 * sealane_creds_hear:
 *
 * Takes one of the places for connections that are heard out, before anything
 * is spent on one; sealane_creds_heard() gives it back.
 *
 * Returns: whether there was one; else sets @errp.
 */
bool sealane_creds_hear(SealaneCreds *creds, Error **errp);
void sealane_creds_heard(SealaneCreds *creds);

/**
 * sealane_creds_accept:
 * @shut: ends a wait for the session, when somebody sets it
 *
 * As sealane_creds_connect(), from the end that accepted the connection,
 * which opens a session or joins the current one as the other end asks.
 */
struct sealane_stream *
sealane_creds_accept(SealaneCreds *creds,
                     int fd,
                     const struct sealane_canceller *canceller,
                     const bool *shut,
                     SealaneSession **session,
                     Error **errp);

/**
 * sealane_creds_adopt:
 *
 * From here on channels join @session. Its opener calls it once the first
 * channel is in place, so that no other channel overtakes that one.
 */
void sealane_creds_adopt(SealaneCreds *creds, SealaneSession *session);

/**
 * sealane_creds_leave:
 *
 * A channel of @session has closed; gives up its reference. At a server
 * nothing joins a session whose channels have all closed; a client says by
 * sealane_creds_complete(), or by opening another, that one is over.
 */
void sealane_creds_leave(SealaneCreds *creds, SealaneSession *session);

/**
 * sealane_creds_complete:
 *
 * The migration is complete: the secret of @creds opens no other session.
 */
void sealane_creds_complete(SealaneCreds *creds);

#endif /* QCRYPTO_SEALANECREDS_H */

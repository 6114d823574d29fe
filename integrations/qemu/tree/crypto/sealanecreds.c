/*
 * Sealane credentials: what both ends of a migration know each other by, and
 * the session that was opened with it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sealane.h>

#include "crypto/sealanecreds.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/module.h"
#include "qemu/thread.h"
#include "qom/object_interfaces.h"

/* How long a join waits for its session, which may be about to be adopted. */
#define SEALANE_ADOPT_MS 10000
/* How often it looks whether the connection was shut down. */
#define SEALANE_LOOK_MS 100
/*
 * What a frame holds: one packet of multifd, a header of less than a page and
 * 128 pages, which would else be a frame or two and a remainder.
 */
#define SEALANE_FRAME_BYTES (129 * 4096)
/* Connections that are heard out at a time, whoever they are from. */
#define SEALANE_HANDSHAKES_MAX 64

struct SealaneCreds {
    Object parent;
    QCryptoTLSCredsEndpoint endpoint;
    char *secret_file;
    char *dir;
    char *peer;
    char *engine;
    struct sealane_trust *trust;
    struct sealane_config *config;
    unsigned handshakes; /* atomic */

    QemuMutex lock;
    QemuCond adopted;
    SealaneSession *session; /* under lock */
};

struct SealaneSession {
    struct sealane_streams *streams;
    unsigned channels; /* open ones, under the credentials' lock */
};

static void sealane_session_clear(gpointer opaque)
{
    SealaneSession *session = opaque;

    sealane_streams_destroy(&session->streams);
}

static void sealane_session_unref(SealaneSession *session)
{
    if (session) {
        g_atomic_rc_box_release_full(session, sealane_session_clear);
    }
}

/* Takes over @streams, with one channel. */
static SealaneSession *sealane_session_new(struct sealane_streams *streams)
{
    SealaneSession *session = g_atomic_rc_box_new0(SealaneSession);

    session->streams = streams;
    session->channels = 1;
    return session;
}

bool sealane_creds_check_endpoint(SealaneCreds *creds,
                                  QCryptoTLSCredsEndpoint endpoint,
                                  Error **errp)
{
    if (creds->endpoint == endpoint) {
        return true;
    }
    error_setg(errp, "Sealane credentials of a %s where those of a %s are "
               "wanted: create them with endpoint=%s",
               QCryptoTLSCredsEndpoint_str(creds->endpoint),
               QCryptoTLSCredsEndpoint_str(endpoint),
               QCryptoTLSCredsEndpoint_str(endpoint));
    return false;
}

static void sealane_creds_error(Error **errp)
{
    error_setg(errp, "Sealane: %s", sealane_last_error());
}

/* The source connects, whatever QEMU migrates. */
static int sealane_creds_role(SealaneCreds *creds)
{
    return creds->endpoint == QCRYPTO_TLS_CREDS_ENDPOINT_CLIENT ?
        SEALANE_ROLE_SOURCE : SEALANE_ROLE_TARGET;
}

static int sealane_creds_side(SealaneCreds *creds)
{
    return creds->endpoint == QCRYPTO_TLS_CREDS_ENDPOINT_CLIENT ?
        SEALANE_SIDE_CONNECTED : SEALANE_SIDE_ACCEPTED;
}

/*
 * The current session, with a reference. At a server a join may come before
 * the main loop has adopted the session: the other end knows sooner that it is
 * open. @shut ends that wait.
 */
static SealaneSession *sealane_creds_current(SealaneCreds *creds,
                                             const bool *shut)
{
    int64_t until = g_get_monotonic_time() + SEALANE_ADOPT_MS * 1000;

    QEMU_LOCK_GUARD(&creds->lock);
    while (!creds->session && shut && !qatomic_read(shut) &&
           g_get_monotonic_time() < until) {
        qemu_cond_timedwait(&creds->adopted, &creds->lock, SEALANE_LOOK_MS);
    }
    return creds->session ? g_atomic_rc_box_acquire(creds->session) : NULL;
}

typedef int SealaneBegin(int fd, int role,
                         const struct sealane_trust *trust,
                         const struct sealane_config *config,
                         const struct sealane_canceller *canceller,
                         struct sealane_streams **streams,
                         struct sealane_stream **stream);
typedef int SealaneMore(const struct sealane_streams *streams, int fd,
                        const struct sealane_canceller *canceller,
                        struct sealane_stream **stream);

static struct sealane_stream *
sealane_creds_begin(SealaneCreds *creds, SealaneBegin *begin, int fd,
                    const struct sealane_canceller *canceller,
                    SealaneSession **session, Error **errp)
{
    struct sealane_streams *streams = NULL;
    struct sealane_stream *stream = NULL;

    if (begin(fd, sealane_creds_role(creds), creds->trust, creds->config,
              canceller, &streams, &stream) < 0) {
        sealane_creds_error(errp);
        return NULL;
    }
    *session = sealane_session_new(streams);
    return stream;
}

static struct sealane_stream *
sealane_creds_more(SealaneCreds *creds, SealaneMore *more, int fd,
                   const struct sealane_canceller *canceller, const bool *shut,
                   SealaneSession **session, Error **errp)
{
    struct sealane_stream *stream = NULL;

    *session = sealane_creds_current(creds, shut);
    if (!*session) {
        error_setg(errp, "Sealane: a channel joins a migration whose first "
                   "channel is not open here: migrate again");
        return NULL;
    }
    if (more((*session)->streams, fd, canceller, &stream) < 0) {
        sealane_creds_error(errp);
        sealane_session_unref(*session);
        *session = NULL;
        return NULL;
    }
    /* Only now: who it is was not known before. */
    WITH_QEMU_LOCK_GUARD(&creds->lock) {
        (*session)->channels++;
    }
    return stream;
}

struct sealane_stream *
sealane_creds_connect(SealaneCreds *creds, SealaneWay way, int fd,
                      const struct sealane_canceller *canceller,
                      SealaneSession **session, Error **errp)
{
    if (way == SEALANE_OPENS) {
        return sealane_creds_begin(creds, sealane_streams_open, fd, canceller,
                                   session, errp);
    }
    return sealane_creds_more(creds, sealane_streams_join, fd, canceller,
                              NULL, session, errp);
}

bool sealane_creds_hear(SealaneCreds *creds, Error **errp)
{
    if (qatomic_fetch_inc(&creds->handshakes) < SEALANE_HANDSHAKES_MAX) {
        return true;
    }
    qatomic_dec(&creds->handshakes);
    error_setg(errp, "Sealane: a connection is turned away, because %u others "
               "are in their handshake: keep strangers away from this port, "
               "or migrate again", SEALANE_HANDSHAKES_MAX);
    return false;
}

void sealane_creds_heard(SealaneCreds *creds)
{
    qatomic_dec(&creds->handshakes);
}

struct sealane_stream *
sealane_creds_accept(SealaneCreds *creds, int fd,
                     const struct sealane_canceller *canceller,
                     const bool *shut, SealaneSession **session, Error **errp)
{
    switch (sealane_streams_asks(fd, creds->config, canceller)) {
    case SEALANE_ASKS_OPEN:
        return sealane_creds_begin(creds, sealane_streams_answer, fd,
                                   canceller, session, errp);
    case SEALANE_ASKS_JOIN:
        return sealane_creds_more(creds, sealane_streams_admit, fd, canceller,
                                  shut, session, errp);
    default:
        sealane_creds_error(errp);
        return NULL;
    }
}

void sealane_creds_adopt(SealaneCreds *creds, SealaneSession *session)
{
    SealaneSession *before;

    WITH_QEMU_LOCK_GUARD(&creds->lock) {
        before = creds->session;
        creds->session = g_atomic_rc_box_acquire(session);
        qemu_cond_broadcast(&creds->adopted);
    }
    sealane_session_unref(before);
}

void sealane_creds_leave(SealaneCreds *creds, SealaneSession *session)
{
    bool over = false;

    WITH_QEMU_LOCK_GUARD(&creds->lock) {
        session->channels--;
        /* The source opens anew; and it tells the end of its session. */
        if (session->channels == 0 && creds->session == session &&
            creds->endpoint == QCRYPTO_TLS_CREDS_ENDPOINT_SERVER) {
            over = true;
            creds->session = NULL;
        }
    }
    if (over) {
        sealane_session_unref(session);
    }
    sealane_session_unref(session);
}

void sealane_creds_complete(SealaneCreds *creds)
{
    SealaneSession *session;

    WITH_QEMU_LOCK_GUARD(&creds->lock) {
        session = creds->session;
        creds->session = NULL;
    }
    if (session) {
        sealane_streams_complete(session->streams);
        sealane_session_unref(session);
    }
}

/* The library's warnings are this process's. */
static void sealane_creds_log(void *opaque, int level, const char *text)
{
    warn_report("Sealane: %s", text);
}

static bool sealane_creds_configure(SealaneCreds *creds, Error **errp)
{
    if (sealane_set_log(SEALANE_LOG_WARNING, sealane_creds_log, NULL) < 0 ||
        sealane_config_new(&creds->config) < 0 ||
        sealane_config_set_frame_bytes(creds->config,
                                       SEALANE_FRAME_BYTES) < 0 ||
        sealane_config_set(creds->config, "engine", creds->engine) < 0) {
        sealane_creds_error(errp);
        return false;
    }
    return true;
}

/* Whether the properties say who is at the other end. */
static bool sealane_creds_check(SealaneCreds *creds, Error **errp)
{
    if (!creds->secret_file && !creds->dir && !creds->peer) {
        error_setg(errp, "sealane-creds: neither secret-file nor dir and peer "
                   "are given: name a file with the secret that both ends "
                   "hold (sealane secret new), or a directory with "
                   "certificates and the host that is expected, or all three");
        return false;
    }
    if (creds->dir && !creds->peer) {
        error_setg(errp, "sealane-creds: dir is given and peer is not: "
                   "a certificate of the CA says that a host is one of yours, "
                   "not which one: name the host that is expected at the other "
                   "end, as its certificate has it, or sha256: and its "
                   "fingerprint");
        return false;
    }
    if (creds->peer && !creds->dir) {
        error_setg(errp, "sealane-creds: peer=%s is given and dir is not: name "
                   "the directory with this host's certificates, for example "
                   "dir=/etc/pki/qemu", creds->peer);
        return false;
    }
    return true;
}

/* Reads what the properties name: mistakes are told now, not by a migration. */
static bool sealane_creds_load(SealaneCreds *creds, Error **errp)
{
    struct sealane_secret *secret = NULL;
    struct sealane_certificates *certificates = NULL;
    bool loaded =
        (!creds->secret_file ||
         sealane_secret_read(creds->secret_file, &secret) == 0) &&
        (!creds->dir ||
         (sealane_certificates_from_directory(creds->dir, creds->peer,
                                              &certificates) == 0 &&
          sealane_certificates_check(certificates,
                                     sealane_creds_side(creds)) == 0)) &&
        sealane_trust_new(secret, certificates, &creds->trust) == 0;

    if (!loaded) {
        sealane_creds_error(errp);
    }
    sealane_certificates_destroy(&certificates);
    sealane_secret_destroy(&secret);
    return loaded;
}

static void sealane_creds_finish(UserCreatable *uc, Error **errp)
{
    SealaneCreds *creds = SEALANE_CREDS(uc);

    if (sealane_creds_check(creds, errp) &&
        sealane_creds_configure(creds, errp)) {
        sealane_creds_load(creds, errp);
    }
}

static int sealane_creds_get_endpoint(Object *obj, Error **errp)
{
    return SEALANE_CREDS(obj)->endpoint;
}

/* What has been read and used is not changed by a new name. */
static bool sealane_creds_may_set(SealaneCreds *creds, Error **errp)
{
    if (creds->config) {
        error_setg(errp, "sealane-creds: this object is complete: delete it "
                   "and create another (object-del, object-add)");
        return false;
    }
    return true;
}

static void sealane_creds_set_text(SealaneCreds *creds, char **text,
                                   const char *value, Error **errp)
{
    if (sealane_creds_may_set(creds, errp)) {
        g_free(*text);
        *text = g_strdup(value);
    }
}

static void sealane_creds_set_endpoint(Object *obj, int value, Error **errp)
{
    SealaneCreds *creds = SEALANE_CREDS(obj);

    if (sealane_creds_may_set(creds, errp)) {
        creds->endpoint = value;
    }
}

static char *sealane_creds_get_secret_file(Object *obj, Error **errp)
{
    return g_strdup(SEALANE_CREDS(obj)->secret_file);
}

static void sealane_creds_set_secret_file(Object *obj, const char *value,
                                          Error **errp)
{
    SealaneCreds *creds = SEALANE_CREDS(obj);

    sealane_creds_set_text(creds, &creds->secret_file, value, errp);
}

static char *sealane_creds_get_dir(Object *obj, Error **errp)
{
    return g_strdup(SEALANE_CREDS(obj)->dir);
}

static void sealane_creds_set_dir(Object *obj, const char *value, Error **errp)
{
    SealaneCreds *creds = SEALANE_CREDS(obj);

    sealane_creds_set_text(creds, &creds->dir, value, errp);
}

static char *sealane_creds_get_peer(Object *obj, Error **errp)
{
    return g_strdup(SEALANE_CREDS(obj)->peer);
}

static void sealane_creds_set_peer(Object *obj, const char *value,
                                   Error **errp)
{
    SealaneCreds *creds = SEALANE_CREDS(obj);

    sealane_creds_set_text(creds, &creds->peer, value, errp);
}

static char *sealane_creds_get_engine(Object *obj, Error **errp)
{
    return g_strdup(SEALANE_CREDS(obj)->engine);
}

static void sealane_creds_set_engine(Object *obj, const char *value,
                                     Error **errp)
{
    SealaneCreds *creds = SEALANE_CREDS(obj);

    sealane_creds_set_text(creds, &creds->engine, value, errp);
}

static void sealane_creds_init(Object *obj)
{
    SealaneCreds *creds = SEALANE_CREDS(obj);

    creds->endpoint = QCRYPTO_TLS_CREDS_ENDPOINT_CLIENT;
    creds->engine = g_strdup("uring");
    qemu_mutex_init(&creds->lock);
    qemu_cond_init(&creds->adopted);
}

static void sealane_creds_finalize(Object *obj)
{
    SealaneCreds *creds = SEALANE_CREDS(obj);

    sealane_session_unref(creds->session);
    sealane_trust_destroy(&creds->trust);
    sealane_config_destroy(&creds->config);
    qemu_cond_destroy(&creds->adopted);
    qemu_mutex_destroy(&creds->lock);
    g_free(creds->secret_file);
    g_free(creds->dir);
    g_free(creds->peer);
    g_free(creds->engine);
}

static void sealane_creds_class_init(ObjectClass *oc,
                                     SealaneClassData *data)
{
    UserCreatableClass *ucc = USER_CREATABLE_CLASS(oc);

    ucc->complete = sealane_creds_finish;
    object_class_property_add_enum(oc, "endpoint", "QCryptoTLSCredsEndpoint",
                                   &QCryptoTLSCredsEndpoint_lookup,
                                   sealane_creds_get_endpoint,
                                   sealane_creds_set_endpoint);
    object_class_property_add_str(oc, "secret-file",
                                  sealane_creds_get_secret_file,
                                  sealane_creds_set_secret_file);
    object_class_property_add_str(oc, "dir", sealane_creds_get_dir,
                                  sealane_creds_set_dir);
    object_class_property_add_str(oc, "peer", sealane_creds_get_peer,
                                  sealane_creds_set_peer);
    object_class_property_add_str(oc, "engine", sealane_creds_get_engine,
                                  sealane_creds_set_engine);
}

static const TypeInfo sealane_creds_info = {
    .parent = TYPE_OBJECT,
    .name = TYPE_SEALANE_CREDS,
    .instance_size = sizeof(SealaneCreds),
    .instance_init = sealane_creds_init,
    .instance_finalize = sealane_creds_finalize,
    .class_init = sealane_creds_class_init,
    .interfaces = (InterfaceInfo[]) {
        { TYPE_USER_CREATABLE },
        { }
    }
};

static void sealane_creds_register(void)
{
    type_register_static(&sealane_creds_info);
}

type_init(sealane_creds_register);

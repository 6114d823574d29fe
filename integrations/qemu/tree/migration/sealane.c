/*
 * Migration over Sealane: where the parameter tls-creds names sealane-creds,
 * channels are sealed by libsealane instead of GnuTLS.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "channel.h"
#include "migration.h"
#include "options.h"
#include "sealane.h"

#include "io/channel-sealane.h"
#include "migration/misc.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "yank_functions.h"

/* How long all ends together wait for a peer that reads slowly. */
#define SEALANE_END_US (5 * G_USEC_PER_SEC)

/* The credentials that tls-creds names, if they are Sealane's. */
static SealaneCreds *migration_sealane_creds(void)
{
    const char *id = migrate_tls_creds();
    Object *creds;

    if (!id || !*id) {
        return NULL;
    }
    creds = object_resolve_path_component(object_get_objects_root(), id);
    return (SealaneCreds *)object_dynamic_cast(creds, TYPE_SEALANE_CREDS);
}

bool migration_sealane_is_chosen(void)
{
    return migration_sealane_creds();
}

bool migration_sealane_has(QIOChannel *ioc)
{
    return object_dynamic_cast(OBJECT(ioc), TYPE_QIO_CHANNEL_SEALANE);
}

/* Strangers end no migration: what is wrong with them is told, no more. */
static void migration_sealane_incoming_done(QIOTask *task, gpointer opaque)
{
    g_autoptr(QIOChannel) ioc = QIO_CHANNEL(qio_task_get_source(task));
    Error *err = NULL;

    if (qio_task_propagate_error(task, &err)) {
        error_report_err(err);
    } else if (!qio_channel_sealane_is_first(QIO_CHANNEL_SEALANE(ioc)) &&
               !migrate_multifd() && !migrate_postcopy_preempt()) {
        error_report("Sealane: the source has more than one channel, and this "
                     "target neither multifd nor postcopy-preempt: set the "
                     "same capabilities at both ends");
    } else if (migration_has_all_channels()) {
        /* Asked when it was accepted, too; others may have come meanwhile. */
        error_report("Sealane: one channel more than this migration has: set "
                     "the same multifd-channels at both ends");
    } else {
        migration_channel_process_incoming(ioc);
    }
}

void migration_sealane_process_incoming(QIOChannel *ioc, Error **errp)
{
    SealaneCreds *creds = migration_sealane_creds();
    QIOChannelSealane *sioc;
    Error *err = NULL;

    if (!qio_channel_sealane_check(ioc, creds,
                                   QCRYPTO_TLS_CREDS_ENDPOINT_SERVER, errp)) {
        return;
    }
    sioc = qio_channel_sealane_new_server(ioc, creds, &err);
    if (!sioc) {
        error_report_err(err);
        return;
    }
    qio_channel_set_name(QIO_CHANNEL(sioc), "migration-sealane-incoming");
    qio_channel_sealane_handshake(sioc, migration_sealane_incoming_done, NULL,
                                  NULL, NULL);
}

/* The credentials of the migration that is going on. */
static SealaneCreds *migration_sealane_used;
/* The main channel, while it shakes hands. */
static QIOChannel *migration_sealane_shaking;

void migration_sealane_cancel(void)
{
    if (migration_sealane_shaking) {
        qio_channel_shutdown(migration_sealane_shaking,
                             QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    }
}

/* A secret has served once its migration is complete, and not before. */
static int migration_sealane_event(NotifierWithReturn *notifier,
                                   MigrationEvent *event, Error **errp)
{
    SealaneCreds *creds = migration_sealane_used;

    if (creds && event->type == MIG_EVENT_PRECOPY_DONE &&
        migrate_get_current()->state == MIGRATION_STATUS_COMPLETED) {
        sealane_creds_complete(creds);
        migration_sealane_used = NULL;
        object_unref(OBJECT(creds));
    }
    return 0;
}

static void migration_sealane_use(SealaneCreds *creds)
{
    static NotifierWithReturn notifier;

    if (!notifier.notify) {
        migration_add_notifier(&notifier, migration_sealane_event);
    }
    object_ref(OBJECT(creds));
    if (migration_sealane_used) {
        object_unref(OBJECT(migration_sealane_used));
    }
    migration_sealane_used = creds;
}

static void migration_sealane_outgoing_done(QIOTask *task, gpointer opaque)
{
    g_autoptr(QIOChannel) ioc = QIO_CHANNEL(qio_task_get_source(task));
    Error *err = NULL;

    qio_task_propagate_error(task, &err);
    migration_sealane_shaking = NULL;
    /* Registered again where the migration takes the channel. */
    migration_ioc_unregister_yank(ioc);
    migration_channel_connect(opaque, ioc, NULL, err);
}

void migration_sealane_connect(MigrationState *s, QIOChannel *ioc,
                               Error **errp)
{
    SealaneCreds *creds = migration_sealane_creds();
    QIOChannelSealane *sioc =
        qio_channel_sealane_new_client(ioc, creds, SEALANE_OPENS, errp);

    if (!sioc) {
        return;
    }
    migration_sealane_use(creds);
    qio_channel_set_name(QIO_CHANNEL(sioc), "migration-sealane-outgoing");
    /* A peer that accepts and says nothing can be yanked. */
    migration_ioc_register_yank(QIO_CHANNEL(sioc));
    migration_sealane_shaking = QIO_CHANNEL(sioc);
    qio_channel_sealane_handshake(sioc, migration_sealane_outgoing_done, s,
                                  NULL, NULL);
}

bool migration_sealane_join(QIOChannel *ioc, QIOTaskFunc func, void *opaque,
                            Error **errp)
{
    QIOChannelSealane *sioc =
        qio_channel_sealane_new_client(ioc, migration_sealane_creds(),
                                       SEALANE_JOINS, errp);

    if (!sioc) {
        return false;
    }
    qio_channel_set_name(QIO_CHANNEL(sioc), "migration-sealane-outgoing");
    qio_channel_sealane_handshake(sioc, func, opaque, NULL, NULL);
    return true;
}

int64_t migration_sealane_end_until(void)
{
    MigrationState *s = migrate_get_current();

    /*
     * The main loop stands while somebody waits here. After a failure the
     * other end may be gone for good, and nobody misses the end.
     */
    if (migration_has_failed(s) || s->state == MIGRATION_STATUS_CANCELLING) {
        return 0;
    }
    return g_get_monotonic_time() + SEALANE_END_US;
}

void migration_sealane_end(QIOChannel *ioc, int64_t until_us)
{
    Error *err = NULL;

    if (!ioc || !migration_sealane_has(ioc) ||
        qio_channel_sealane_end(QIO_CHANNEL_SEALANE(ioc), until_us,
                                &err) == 0) {
        return;
    }
    if (until_us) {
        warn_report_err(err);
    } else {
        error_free(err);
    }
}

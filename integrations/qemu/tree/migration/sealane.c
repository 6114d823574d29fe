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

static void migration_sealane_incoming_done(QIOTask *task, gpointer opaque)
{
    QIOChannel *ioc = QIO_CHANNEL(qio_task_get_source(task));
    Error *err = NULL;

    if (qio_task_propagate_error(task, &err)) {
        error_report_err(err);
    } else {
        migration_channel_process_incoming(ioc);
    }
    object_unref(OBJECT(ioc));
}

void migration_sealane_process_incoming(QIOChannel *ioc, Error **errp)
{
    QIOChannelSealane *sioc =
        qio_channel_sealane_new_server(ioc, migration_sealane_creds(), errp);

    if (sioc) {
        qio_channel_set_name(QIO_CHANNEL(sioc), "migration-sealane-incoming");
        qio_channel_sealane_handshake(sioc, migration_sealane_incoming_done,
                                      NULL, NULL, NULL);
    }
}

/* A secret has served once its migration is complete, and not before. */
static int migration_sealane_event(NotifierWithReturn *notifier,
                                   MigrationEvent *event, Error **errp)
{
    SealaneCreds *creds = migration_sealane_creds();

    if (creds && event->type == MIG_EVENT_PRECOPY_DONE &&
        migrate_get_current()->state == MIGRATION_STATUS_COMPLETED) {
        sealane_creds_complete(creds);
    }
    return 0;
}

static void migration_sealane_outgoing_done(QIOTask *task, gpointer opaque)
{
    QIOChannel *ioc = QIO_CHANNEL(qio_task_get_source(task));
    Error *err = NULL;

    qio_task_propagate_error(task, &err);
    migration_channel_connect(opaque, ioc, NULL, err);
    object_unref(OBJECT(ioc));
}

void migration_sealane_connect(MigrationState *s, QIOChannel *ioc,
                               Error **errp)
{
    static NotifierWithReturn notifier;
    QIOChannelSealane *sioc =
        qio_channel_sealane_new_client(ioc, migration_sealane_creds(),
                                       SEALANE_OPENS, errp);

    if (!sioc) {
        return;
    }
    if (!notifier.notify) {
        migration_add_notifier(&notifier, migration_sealane_event);
    }
    qio_channel_set_name(QIO_CHANNEL(sioc), "migration-sealane-outgoing");
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

void migration_sealane_end(QIOChannel *ioc)
{
    MigrationState *s = migrate_get_current();
    Error *err = NULL;

    if (migration_sealane_has(ioc) &&
        qio_channel_sealane_end(QIO_CHANNEL_SEALANE(ioc), &err) < 0) {
        /* Said after a failure too, when the other end may be gone. */
        if (migration_has_failed(s) ||
            s->state == MIGRATION_STATUS_CANCELLING) {
            error_free(err);
        } else {
            warn_report_err(err);
        }
    }
}

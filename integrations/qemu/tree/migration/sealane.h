/*
 * Migration over Sealane: where the parameter tls-creds names sealane-creds,
 * channels are sealed by libsealane instead of GnuTLS.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_SEALANE_H
#define QEMU_MIGRATION_SEALANE_H

#include "io/channel.h"
#include "io/task.h"

#ifdef CONFIG_SEALANE

/* Whether tls-creds names sealane-creds. */
bool migration_sealane_is_chosen(void);

/* Whether the channel is sealed already. */
bool migration_sealane_has(QIOChannel *ioc);

/*
 * Shakes hands over an incoming connection and processes the channel then.
 * Who fails is told to standard error: strangers end no migration.
 */
void migration_sealane_process_incoming(QIOChannel *ioc, Error **errp);

/* Opens the session over the main channel, and connects the migration then. */
void migration_sealane_connect(MigrationState *s, QIOChannel *ioc,
                               Error **errp);

/* Ends a handshake of the main channel, if there is one: it was cancelled. */
void migration_sealane_cancel(void);

/*
 * One more outgoing channel over @ioc, for multifd and postcopy-preempt: @func
 * gets it, or the error, with a reference to the channel.
 */
bool migration_sealane_join(QIOChannel *ioc, QIOTaskFunc func, void *opaque,
                            Error **errp);

/* Until when the ends of all channels together may wait; 0 after a failure. */
int64_t migration_sealane_end_until(void);

/* Says the end of what was written to a sealed channel; else does nothing. */
void migration_sealane_end(QIOChannel *ioc, int64_t until_us);

#else

static inline bool migration_sealane_is_chosen(void)
{
    return false;
}

static inline bool migration_sealane_has(QIOChannel *ioc)
{
    return false;
}

static inline void migration_sealane_process_incoming(QIOChannel *ioc,
                                                      Error **errp)
{
}

static inline void migration_sealane_connect(MigrationState *s,
                                             QIOChannel *ioc, Error **errp)
{
}

static inline void migration_sealane_cancel(void)
{
}

static inline bool migration_sealane_join(QIOChannel *ioc, QIOTaskFunc func,
                                          void *opaque, Error **errp)
{
    return false;
}

static inline int64_t migration_sealane_end_until(void)
{
    return 0;
}

static inline void migration_sealane_end(QIOChannel *ioc, int64_t until_us)
{
}

#endif /* CONFIG_SEALANE */

#endif /* QEMU_MIGRATION_SEALANE_H */

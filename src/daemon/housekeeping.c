#include "daemon/housekeeping.h"

#include "base/log.h"
#include "base/path.h"
#include "base/thread.h"
#include "store/store_sqlite.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_INTERVAL_S 3600u
#define DEFAULT_BACKUPS 24u
#define DEFAULT_EVENTS 10000u
#define DEFAULT_DAYS 30u
#define TOKEN_DAYS 7u
#define FIRST_WAIT_S 30 /* the start is busy enough */

struct housekeeping {
    struct housekeeping_config config;
    char backups[PATH_MAX];
    struct mutex lock; /* the next line */
    bool is_closing;
    pthread_cond_t changed;
    pthread_t thread;
    bool has_thread;
};

static unsigned or_preset(unsigned value, unsigned preset)
{
    return value != 0 ? value : preset;
}

/* "state-20260102T030405Z.db": their order is that of time. */
static int is_backup(const struct dirent *entry)
{
    size_t len = strlen(entry->d_name);

    return strncmp(entry->d_name, "state-", 6) == 0 && len > 9 &&
           strcmp(entry->d_name + len - 3, ".db") == 0;
}

static void free_entries(struct dirent **entries, int count)
{
    for (int i = 0; i < count; i++) {
        free(entries[i]);
    }
    free(entries);
}

/* The oldest go; what was cut off while it was made, too. */
static void rotate(const struct housekeeping *housekeeping)
{
    struct dirent **entries = NULL;
    int count = scandir(housekeeping->backups, &entries, is_backup, alphasort);
    int keep = (int)or_preset(housekeeping->config.keep_backups, DEFAULT_BACKUPS);

    for (int i = 0; i < count - keep; i++) {
        char path[PATH_MAX];
        struct err err;

        if (path_format(path, &err, "%s/%s", housekeeping->backups, entries[i]->d_name) == 0 &&
            unlink(path) != 0) {
            log_warn("%s cannot be removed, ignoring", path);
        }
    }
    free_entries(entries, count);
}

/* When the newest was made, 0 when there is none. */
static time_t newest_time(const struct housekeeping *housekeeping)
{
    struct dirent **entries = NULL;
    int count = scandir(housekeeping->backups, &entries, is_backup, alphasort);
    char path[PATH_MAX];
    struct stat st = {.st_mtime = 0};
    struct err err;

    if (count > 0 &&
        path_format(path, &err, "%s/%s", housekeeping->backups, entries[count - 1]->d_name) == 0 &&
        stat(path, &st) != 0) {
        st.st_mtime = 0;
    }
    free_entries(entries, count);
    return st.st_mtime;
}

static void back_up(const struct housekeeping *housekeeping)
{
    time_t now = time(NULL);
    struct tm parts;
    char name[40], path[PATH_MAX];
    struct err err;
    int rc = path_make_dirs(housekeeping->backups, &err);

    (void)strftime(name, sizeof(name), "state-%Y%m%dT%H%M%SZ.db", gmtime_r(&now, &parts));
    rc = rc < 0 ? rc : path_format(path, &err, "%s/%s", housekeeping->backups, name);
    rc = rc < 0 ? rc : store_sqlite_backup(housekeeping->config.store, path, &err);
    if (rc < 0) {
        log_error("the records were not copied: %s", err.text);
        return; /* older copies stay, whatever their number */
    }
    log_debug("the records were copied to %s", path);
    rotate(housekeeping);
}

static void prune(const struct housekeeping *housekeeping)
{
    const struct compute_keep keep = {
        .events = or_preset(housekeeping->config.keep_events, DEFAULT_EVENTS),
        .days = or_preset(housekeeping->config.keep_days, DEFAULT_DAYS),
        .token_days = TOKEN_DAYS,
    };
    unsigned count = 0;
    struct fault fault;
    int rc = compute_prune(housekeeping->config.compute, &keep, &count, &fault);

    rc = rc < 0 ? rc : api_prune(housekeeping->config.api, &count, &fault);
    if (rc < 0) {
        log_warn("old records are not removed: %s, ignoring", fault.text);
    } else if (count > 0) {
        log_info("%u old records were removed", count);
    }
}

/* False when all ends. */
static bool wait_until(struct housekeeping *housekeeping, time_t when)
{
    const struct timespec until = {.tv_sec = when};
    bool is_closing;

    mutex_lock(&housekeeping->lock);
    while (!housekeeping->is_closing &&
           pthread_cond_timedwait(&housekeeping->changed, &housekeeping->lock.raw, &until) !=
               ETIMEDOUT) {
    }
    is_closing = housekeeping->is_closing;
    mutex_unlock(&housekeeping->lock);
    return !is_closing;
}

static void *housekeeping_main(void *opaque)
{
    struct housekeeping *housekeeping = opaque;
    unsigned interval_s = or_preset(housekeeping->config.interval_s, DEFAULT_INTERVAL_S);
    time_t first = time(NULL) + (interval_s < FIRST_WAIT_S ? (time_t)interval_s : FIRST_WAIT_S);
    time_t due = newest_time(housekeeping) + (time_t)interval_s;

    due = due > first ? due : first;
    due = due < first + (time_t)interval_s ? due : first; /* a copy from the future */
    while (wait_until(housekeeping, due)) {
        prune(housekeeping);
        back_up(housekeeping);
        due = time(NULL) + (time_t)interval_s;
    }
    return NULL;
}

int housekeeping_start(const struct housekeeping_config *config, struct err *err,
                       struct housekeeping **ret_housekeeping)
{
    struct housekeeping *housekeeping = calloc(1, sizeof(*housekeeping));
    int rc;

    if (housekeeping == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    housekeeping->config = *config;
    mutex_init(&housekeeping->lock, LOCK_RANK_LEAF);
    (void)pthread_cond_init(&housekeeping->changed, NULL); /* cannot fail on Linux */
    rc = path_format(housekeeping->backups, err, "%s/backups", config->state_dir);
    if (rc == 0) {
        rc = thread_start(&housekeeping->thread, "housekeeping", housekeeping_main, housekeeping);
        housekeeping->has_thread = rc == 0;
        rc = rc < 0 ? err_set_errno(err, rc, "a thread cannot be started") : 0;
    }
    if (rc < 0) {
        housekeeping_stop(housekeeping);
        return rc;
    }
    *ret_housekeeping = housekeeping;
    return 0;
}

void housekeeping_stop(struct housekeeping *housekeeping)
{
    if (housekeeping == NULL) {
        return;
    }
    mutex_lock(&housekeeping->lock);
    housekeeping->is_closing = true;
    (void)pthread_cond_broadcast(&housekeeping->changed); /* cannot fail */
    mutex_unlock(&housekeeping->lock);
    if (housekeeping->has_thread) {
        (void)pthread_join(housekeeping->thread, NULL);
    }
    (void)pthread_cond_destroy(&housekeeping->changed);
    mutex_done(&housekeeping->lock);
    free(housekeeping);
}

static int set_mark(const char *state_dir, struct err *err)
{
    char path[PATH_MAX];
    CLEANUP_CLOSE int fd = -1;
    int rc = path_format(path, err, "%s/" COMPUTE_RESTORED_MARK, state_dir);

    if (rc < 0) {
        return rc;
    }
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    return fd < 0 || fsync(fd) != 0 ? err_set_errno(err, -errno, "%s cannot be made", path) : 0;
}

int housekeeping_restore(const char *backup, const char *state_dir, struct err *err)
{
    char db[PATH_MAX];
    int rc = path_make_dirs(state_dir, err);

    rc = rc < 0 ? rc : path_format(db, err, "%s/state.db", state_dir);
    rc = rc < 0 ? rc : store_sqlite_check(backup, err);
    rc = rc < 0 ? rc : set_mark(state_dir, err);
    return rc < 0 ? rc : store_sqlite_restore(backup, db, err);
}

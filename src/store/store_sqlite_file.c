/* The files of the SQLite store: made whole, checked at opening, sealed from outside. */
#include "store/store_sqlite_int.h"

#include "base/io.h"
#include "base/log.h"
#include "base/wire.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#define APPLICATION_ID 0x4352424c /* "CRBL", in the header of the file */
#define SCHEMA_VERSION 1
#define SEAL_MAGIC "corbel store seal 1\n"
#define SEAL_BYTES 72
#define SEAL_REVISION_OFFSET 64 /* aligned: one sector, one write, never torn */

/* The seal: what is known of the database without asking it. */
struct seal {
    char magic[sizeof(SEAL_MAGIC) - 1];
    char id[SQLITE_STORE_ID_BYTES - 1];
    char zero[SEAL_REVISION_OFFSET - (sizeof(SEAL_MAGIC) - 1) - (SQLITE_STORE_ID_BYTES - 1)];
    le64_t revision;
};

static_assert(sizeof(struct seal) == SEAL_BYTES, "the seal's layout is its format");

/* With the name of the store, the application's id and the version of the schema. */
#define SCHEMA                                                                                  \
    "BEGIN;"                                                                                    \
    "CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;"                            \
    "CREATE TABLE record(key TEXT PRIMARY KEY, value TEXT NOT NULL, revision INTEGER NOT NULL," \
    " created INTEGER NOT NULL, lease INTEGER NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID;"   \
    "CREATE INDEX record_lease ON record(lease) WHERE lease != 0;"                              \
    "CREATE TABLE change(revision INTEGER NOT NULL, key TEXT NOT NULL, value TEXT,"             \
    " created INTEGER NOT NULL, lease INTEGER NOT NULL, sum INTEGER NOT NULL,"                  \
    " PRIMARY KEY(revision, key)) WITHOUT ROWID;"                                               \
    "CREATE TABLE lease(id INTEGER PRIMARY KEY, ttl INTEGER NOT NULL);"                         \
    "INSERT INTO meta VALUES('revision', 0), ('kept_after', 0), ('id', '%s');"                  \
    "PRAGMA application_id = %d;"                                                               \
    "PRAGMA user_version = %d;"                                                                 \
    "COMMIT;"

static const char *const statements[STATEMENT_COUNT] = {
    [STATEMENT_BEGIN] = "BEGIN IMMEDIATE",
    [STATEMENT_COMMIT] = "COMMIT",
    [STATEMENT_ROLLBACK] = "ROLLBACK",
    [STATEMENT_GUARD] = "SELECT revision, created FROM record WHERE key = ?1",
    [STATEMENT_PUT] = "INSERT OR REPLACE INTO record(key, value, revision, created, lease, sum)"
                      " VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
    [STATEMENT_DELETE] = "DELETE FROM record WHERE key = ?1",
    [STATEMENT_NOTE] = "INSERT INTO change(key, value, revision, created, lease, sum)"
                       " VALUES(?1, ?2, ?3, ?4, ?5, ?6)",
    [STATEMENT_SET] = "UPDATE meta SET value = ?2 WHERE name = ?1",
    [STATEMENT_PRUNE] = "DELETE FROM change WHERE revision <= ?1",
    [STATEMENT_LEASE_ADD] = "INSERT INTO lease(id, ttl) VALUES(?1, ?2)",
    [STATEMENT_LEASE_REMOVE] = "DELETE FROM lease WHERE id = ?1",
    [STATEMENT_LEASE_KEYS] = "SELECT key FROM record WHERE lease = ?1 AND lease != 0",
    [STATEMENT_READ_BEGIN] = "BEGIN",
    [STATEMENT_READ_END] = "COMMIT",
    [STATEMENT_META] = "SELECT value FROM meta WHERE name = ?1",
    [STATEMENT_GET] = "SELECT key, value, revision, created, lease, sum FROM record WHERE key = ?1",
    [STATEMENT_LIST] = "SELECT key, value, revision, created, lease, sum FROM record"
                       " WHERE key >= ?1 AND key < ?2 AND key > ?3 ORDER BY key LIMIT ?4",
    [STATEMENT_CHANGES] = "SELECT key, value, revision, created, lease, sum FROM change"
                          " WHERE revision > ?3 AND key >= ?1 AND key < ?2 ORDER BY revision, key",
};

/* FNV-1a over everything that the record says: it need not withstand a forger, only a bad disk. */
static uint64_t sum_bytes(uint64_t sum, const void *data, size_t len)
{
    const unsigned char *bytes = data;

    for (size_t i = 0; i < len; i++) {
        /* An analyzer does not follow bytes into whole numbers. */
        // NOLINTNEXTLINE(clang-analyzer-core.UndefinedBinaryOperatorResult)
        sum = (sum ^ bytes[i]) * 0x100000001b3ull;
    }
    return sum;
}

int64_t sqlite_sum(const char *key, const char *value, uint64_t revision, uint64_t created,
                   uint64_t lease)
{
    const uint64_t numbers[] = {revision, created, lease, value != NULL};
    uint64_t sum = sum_bytes(0xcbf29ce484222325ull, numbers, sizeof(numbers));

    sum = sum_bytes(sum, key, strlen(key) + 1);
    if (value != NULL) {
        sum = sum_bytes(sum, value, strlen(value));
    }
    return (int64_t)sum;
}

int sqlite_error(int code, const char *path, struct err *err)
{
    int primary = code & 0xff;

    /* Limits and quotas end a write, too. One that failed left nothing that counts; a sync that
     * failed may have lost anything, and is for those below. */
    if (primary == SQLITE_FULL || code == SQLITE_IOERR_WRITE || code == SQLITE_IOERR_SHMSIZE) {
        return err_set(err, -ENOSPC, "there is no room for %s; free some: nothing was changed",
                       path);
    }
    if (primary == SQLITE_CORRUPT || primary == SQLITE_NOTADB) {
        return err_set(err, -EBADMSG, "%s is damaged: %s", path, sqlite3_errstr(code));
    }
    if (primary == SQLITE_NOMEM) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    return err_set(err, -EIO, "%s: %s", path, sqlite3_errstr(code));
}

int sqlite_side_prepare(struct sqlite_side *side, enum statement first, enum statement end)
{
    for (enum statement i = first; i < end; i++) {
        int rc = sqlite3_prepare_v3(side->db, statements[i], -1, SQLITE_PREPARE_PERSISTENT,
                                    &side->statements[i], NULL);

        if (rc != SQLITE_OK) {
            return rc;
        }
    }
    return SQLITE_OK;
}

static int sync_directory(const char *path)
{
    char dir[PATH_MAX];
    char *slash;
    CLEANUP_CLOSE int fd = -1;

    (void)snprintf(dir, sizeof(dir), "%s", path);
    slash = strrchr(dir, '/');
    if (slash == NULL) {
        (void)snprintf(dir, sizeof(dir), ".");
    } else {
        slash[slash == dir] = '\0';
    }
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || fsync(fd) != 0 ? -errno : 0;
}

static int open_db(const char *path, bool may_create, sqlite3 **ret_db)
{
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE |
                (may_create ? SQLITE_OPEN_CREATE : 0);
    int rc = sqlite3_open_v2(path, ret_db, flags, NULL);

    if (rc == SQLITE_OK) {
        rc = sqlite3_exec(*ret_db,
                          "PRAGMA synchronous = FULL; PRAGMA trusted_schema = OFF;"
                          "PRAGMA cell_size_check = ON; PRAGMA busy_timeout = 10000",
                          NULL, NULL, NULL);
    }
    return rc;
}

static int make_id(char id[SQLITE_STORE_ID_BYTES])
{
    unsigned char bytes[(SQLITE_STORE_ID_BYTES - 1) / 2];

    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes)) {
        return -EIO;
    }
    for (size_t i = 0; i < sizeof(bytes); i++) {
        (void)snprintf(id + 2 * i, 3, "%02x", bytes[i]);
    }
    return 0;
}

/* Makes the database beside its place and moves it there: it appears whole or not at all. */
static int create_db(const struct sqlite_store *store, struct err *err)
{
    char making[PATH_MAX + 8];
    char id[SQLITE_STORE_ID_BYTES];
    char sql[sizeof(SCHEMA) + 64];
    sqlite3 *db = NULL;
    int rc;

    (void)snprintf(making, sizeof(making), "%s.new", store->path);
    if (make_id(id) < 0) {
        return err_set(err, -EIO, "the host gives no random numbers");
    }
    if (unlink(making) != 0 && errno != ENOENT) {
        return err_set_errno(err, -errno, "%s cannot be removed", making);
    }
    (void)snprintf(sql, sizeof(sql), SCHEMA, id, APPLICATION_ID, SCHEMA_VERSION);
    rc = open_db(making, true, &db);
    if (rc == SQLITE_OK) {
        rc = sqlite3_exec(db, sql, NULL, NULL, NULL);
    }
    if (rc != SQLITE_OK) {
        rc = sqlite_error(rc, making, err);
    } else if (chmod(making, 0600) != 0) {
        rc = err_set_errno(err, -errno, "%s cannot be made", making);
    }
    (void)sqlite3_close(db);
    if (rc == 0 && (rename(making, store->path) != 0 || sync_directory(store->path) < 0)) {
        rc = err_set_errno(err, -errno, "%s cannot be made", store->path);
    }
    return rc;
}

/* Whether there is a seal, and what it says. */
static int open_seal(struct sqlite_store *store, struct seal *seal, bool *ret_exists,
                     struct err *err)
{
    char path[PATH_MAX + 8];
    ssize_t n;

    (void)snprintf(path, sizeof(path), "%s.seal", store->path);
    store->seal_fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    *ret_exists = store->seal_fd >= 0;
    if (store->seal_fd < 0) {
        return errno == ENOENT ? 0 : err_set_errno(err, -errno, "%s cannot be opened", path);
    }
    n = io_pread_full(store->seal_fd, seal, sizeof(*seal), 0);
    if (n != (ssize_t)sizeof(*seal) || memcmp(seal->magic, SEAL_MAGIC, sizeof(seal->magic)) != 0) {
        return err_set(err, -EBADMSG,
                       "%s is damaged; if the database beside it is known to be good, remove the "
                       "seal",
                       path);
    }
    return 0;
}

/* For a database that has none yet. */
static int create_seal(struct sqlite_store *store, struct err *err)
{
    struct seal seal = {.revision = le64_make(store->revision)};
    char path[PATH_MAX + 8], making[PATH_MAX + 16];
    int rc;

    (void)snprintf(path, sizeof(path), "%s.seal", store->path);
    (void)snprintf(making, sizeof(making), "%s.seal.new", store->path);
    memcpy(seal.magic, SEAL_MAGIC, sizeof(seal.magic));
    memcpy(seal.id, store->id, sizeof(seal.id));
    store->seal_fd = open(making, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (store->seal_fd < 0) {
        return err_set_errno(err, -errno, "%s cannot be made", making);
    }
    rc = io_pwrite_full(store->seal_fd, &seal, sizeof(seal), 0);
    if (rc == 0 && (fsync(store->seal_fd) != 0 || rename(making, path) != 0)) {
        rc = -errno;
    }
    if (rc == 0) {
        rc = sync_directory(path);
    }
    return rc < 0 ? err_set_errno(err, rc, "%s cannot be made", path) : 0;
}

void sqlite_file_seal(struct sqlite_store *store)
{
    le64_t revision = le64_make(store->revision);
    /* The database is synced before, so that the seal can only be behind it. */
    int rc = io_pwrite_full(store->seal_fd, &revision, sizeof(revision), SEAL_REVISION_OFFSET);

    if (rc < 0) {
        log_warn("the seal of %s cannot be written, ignoring", store->path);
    }
}

static int read_number(sqlite3 *db, const char *sql, int64_t *ret_number)
{
    sqlite3_stmt *statement = NULL;
    int rc = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);

    if (rc == SQLITE_OK) {
        rc = sqlite3_step(statement);
        *ret_number = rc == SQLITE_ROW ? sqlite3_column_int64(statement, 0) : 0;
        rc = rc == SQLITE_ROW || rc == SQLITE_DONE ? SQLITE_OK : rc;
    }
    (void)sqlite3_finalize(statement);
    return rc;
}

static int check_version(struct sqlite_store *store, struct err *err)
{
    int64_t application = 0, version = 0;
    int rc = read_number(store->write.db, "PRAGMA application_id", &application);

    if (rc == SQLITE_OK) {
        rc = read_number(store->write.db, "PRAGMA user_version", &version);
    }
    if (rc != SQLITE_OK) {
        return sqlite_error(rc, store->path, err);
    }
    if (application != APPLICATION_ID || version < 1) {
        return err_set(err, -EBADMSG, "%s is damaged, or no database of Corbel", store->path);
    }
    if (version > SCHEMA_VERSION) {
        return err_set(err, -EPROTO,
                       "%s was written by a newer Corbel (format %lld, this one knows %d); "
                       "nothing was changed",
                       store->path, (long long)version, SCHEMA_VERSION);
    }
    return 0;
}

/* What SQLite itself finds: "ok", or the first of the defects. */
static int check_structure(struct sqlite_store *store, struct err *err)
{
    sqlite3_stmt *check = NULL;
    int rc = sqlite3_prepare_v2(store->write.db, "PRAGMA integrity_check(1)", -1, &check, NULL);

    if (rc == SQLITE_OK) {
        rc = sqlite3_step(check);
    }
    if (rc != SQLITE_ROW) {
        rc = sqlite_error(rc, store->path, err);
    } else {
        const char *text = (const char *)sqlite3_column_text(check, 0);

        rc = text != NULL && strcmp(text, "ok") == 0
                 ? 0
                 : err_set(err, -EBADMSG, "%s is damaged: %.200s", store->path,
                           text != NULL ? text : "no answer");
    }
    (void)sqlite3_finalize(check);
    return rc;
}

/* Every record and line of history is what was written. */
static int check_rows(struct sqlite_store *store, const char *sql, struct err *err)
{
    sqlite3_stmt *rows = NULL;
    int rc = sqlite3_prepare_v2(store->write.db, sql, -1, &rows, NULL);

    while (rc == SQLITE_OK || rc == SQLITE_ROW) {
        struct store_record record = {0};

        rc = sqlite3_step(rows);
        if (rc != SQLITE_ROW) {
            break;
        }
        if (sqlite_read_record(rows, &record) < 0 || record.revision > store->revision) {
            store_record_done(&record);
            (void)sqlite3_finalize(rows);
            return err_set(err, -EBADMSG, "%s is damaged: a record is not what was written",
                           store->path);
        }
        store_record_done(&record);
    }
    (void)sqlite3_finalize(rows);
    return rc == SQLITE_DONE ? 0 : sqlite_error(rc, store->path, err);
}

static int read_meta(struct sqlite_store *store, struct err *err)
{
    sqlite3_stmt *id = NULL;
    int64_t revision = -1, kept_after = -1, lease = 0;
    int rc =
        read_number(store->write.db, "SELECT value FROM meta WHERE name = 'revision'", &revision);

    if (rc == SQLITE_OK) {
        rc = read_number(store->write.db, "SELECT value FROM meta WHERE name = 'kept_after'",
                         &kept_after);
    }
    if (rc == SQLITE_OK) {
        rc = read_number(store->write.db, "SELECT max(id) FROM lease", &lease);
    }
    if (rc == SQLITE_OK) {
        rc = sqlite3_prepare_v2(store->write.db, "SELECT value FROM meta WHERE name = 'id'", -1,
                                &id, NULL);
    }
    if (rc == SQLITE_OK) {
        rc = sqlite3_step(id);
    }
    if (rc == SQLITE_ROW && sqlite3_column_bytes(id, 0) == SQLITE_STORE_ID_BYTES - 1) {
        memcpy(store->id, sqlite3_column_text(id, 0), SQLITE_STORE_ID_BYTES);
        rc = 0;
    } else {
        rc = err_set(err, -EBADMSG, "%s is damaged: it has no name", store->path);
    }
    (void)sqlite3_finalize(id);
    store->revision = (uint64_t)revision;
    store->kept_after = (uint64_t)kept_after;
    store->next_lease = (uint64_t)lease + 1;
    return rc;
}

static int load_leases(struct sqlite_store *store, struct err *err)
{
    sqlite3_stmt *rows = NULL;
    int rc = sqlite3_prepare_v2(store->write.db, "SELECT id, ttl FROM lease", -1, &rows, NULL);
    int step = rc;

    while (rc == 0 && (step = sqlite3_step(rows)) == SQLITE_ROW) {
        rc = sqlite_lease_load(store, (uint64_t)sqlite3_column_int64(rows, 0),
                               (unsigned)sqlite3_column_int64(rows, 1));
    }
    (void)sqlite3_finalize(rows);
    if (rc < 0) {
        return err_set(err, rc, "out of memory");
    }
    return step == SQLITE_DONE ? 0 : sqlite_error(step, store->path, err);
}

/* Against what is known from outside. */
static int check_seal(const struct sqlite_store *store, const struct seal *seal, struct err *err)
{
    uint64_t sealed = le64_get(seal->revision);

    if (memcmp(seal->id, store->id, sizeof(seal->id)) != 0) {
        return err_set(err, -ESTALE,
                       "%s is not the database that was here; to take it nevertheless, remove "
                       "%s.seal",
                       store->path, store->path);
    }
    if (sealed > store->revision) {
        return err_set(err, -ESTALE,
                       "%s has lost changes: it ends at revision %" PRIu64 ", and %" PRIu64
                       " was acknowledged; to go on with less, remove %s.seal",
                       store->path, store->revision, sealed, store->path);
    }
    return 0;
}

static int check_all(struct sqlite_store *store, struct err *err)
{
    int rc = check_version(store, err);

    if (rc == 0) {
        rc = check_structure(store, err);
    }
    if (rc == 0) {
        rc = read_meta(store, err);
    }
    if (rc == 0) {
        rc = check_rows(store, "SELECT key, value, revision, created, lease, sum FROM record", err);
    }
    if (rc == 0) {
        rc = check_rows(store, "SELECT key, value, revision, created, lease, sum FROM change", err);
    }
    return rc;
}

int sqlite_file_check(struct sqlite_store *store, struct err *err)
{
    int rc = open_db(store->path, false, &store->write.db);

    rc = rc == SQLITE_OK ? check_all(store, err) : sqlite_error(rc, store->path, err);
    (void)sqlite3_close(store->write.db);
    store->write.db = NULL;
    return rc;
}

static int open_sides(struct sqlite_store *store, struct err *err)
{
    int rc = sqlite3_exec(store->write.db,
                          "PRAGMA journal_mode = WAL; PRAGMA journal_size_limit = 16777216", NULL,
                          NULL, NULL);

    if (rc == SQLITE_OK) {
        rc = sqlite_side_prepare(&store->write, STATEMENT_BEGIN, STATEMENT_READ_BEGIN);
    }
    if (rc != SQLITE_OK) {
        return sqlite_error(rc, store->path, err);
    }
    rc = open_db(store->path, false, &store->read.db);
    if (rc == SQLITE_OK) {
        rc = sqlite_side_prepare(&store->read, STATEMENT_READ_BEGIN, STATEMENT_COUNT);
    }
    return rc == SQLITE_OK ? 0 : sqlite_error(rc, store->path, err);
}

/* Decides between a new store and one that has lost its file. */
static int find_or_create(struct sqlite_store *store, bool has_seal, struct err *err)
{
    struct stat st;

    if (stat(store->path, &st) != 0 && errno != ENOENT) {
        return err_set_errno(err, -errno, "%s cannot be read", store->path);
    }
    if (access(store->path, F_OK) != 0) {
        return has_seal ? err_set(err, -EBADMSG,
                                  "%s is gone, and there was one (%s.seal says so); put a copy of "
                                  "it back",
                                  store->path, store->path)
                        : create_db(store, err);
    }
    return st.st_size == 0 ? err_set(err, -EBADMSG, "%s is damaged: it is empty", store->path) : 0;
}

int sqlite_file_open(struct sqlite_store *store, struct err *err)
{
    struct seal seal = {.revision = {0}};
    bool has_seal = false;
    int rc = open_seal(store, &seal, &has_seal, err);

    if (rc == 0) {
        rc = find_or_create(store, has_seal, err);
    }
    if (rc < 0) {
        return rc;
    }
    rc = open_db(store->path, false, &store->write.db);
    if (rc != SQLITE_OK) {
        return sqlite_error(rc, store->path, err);
    }
    rc = check_all(store, err);
    if (rc == 0) {
        rc = has_seal ? check_seal(store, &seal, err) : create_seal(store, err);
    }
    if (rc == 0) {
        rc = open_sides(store, err);
    }
    return rc < 0 ? rc : load_leases(store, err);
}

static void close_side(struct sqlite_side *side)
{
    for (unsigned i = 0; i < STATEMENT_COUNT; i++) {
        (void)sqlite3_finalize(side->statements[i]); /* repeats an old error */
    }
    (void)sqlite3_close(side->db);
}

void sqlite_file_close(struct sqlite_store *store)
{
    close_side(&store->read);
    close_side(&store->write);
    if (store->seal_fd >= 0) {
        (void)close(store->seal_fd);
    }
}

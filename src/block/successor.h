/*
 * Where a disk went on.
 *
 * A live snapshot, mirror or commit gives a disk another file, but whoever
 * starts it again may still name the one before: that is stale then, or has
 * an overlay that a write to it would spoil. So the file before is marked with
 * the name and format of the next one, in an extended attribute of its inode:
 * the mark goes where the file goes, and a copy has none. Block devices and
 * some file systems cannot hold it.
 *
 * The mark is the moment of the switch: once it is there the next file is
 * whole, and before it the one before is.
 *
 * A second mark, on the next file, says that it is not whole yet, from before
 * its first byte until just before the switch. Whatever ends the copy, such a
 * file is never taken for a disk. Synchronous; any thread.
 */
#ifndef CORBEL_BLOCK_SUCCESSOR_H
#define CORBEL_BLOCK_SUCCESSOR_H

#include "base/compiler.h"
#include "base/error.h"
#include "block/block.h"

#include <limits.h>
#include <stdbool.h>

struct block_file;

struct successor {
    enum block_format format;
    char path[PATH_MAX]; /* from the root */
};

/* Makes the name of a new file durable, which a mark will name. The format flushes its contents. */
int successor_prepare(const struct block_file *to) MUST_CHECK;

/* Marks, durably, that a file is to become a copy of another and is not whole; `from` may be NULL.
 * -EOPNOTSUPP where there can be no mark. */
int successor_begin(const struct block_file *from, const struct block_file *to) MUST_CHECK;
/* Takes all marks from a file that is whole now, durably. */
int successor_end(const struct block_file *to) MUST_CHECK;

/*
 * Marks, durably, that the disk in `from` goes on in `to`, and takes the marks
 * of that one away. -EOPNOTSUPP where `from` can have none: then it is without
 * one; other errors are the file system's.
 */
int successor_set(const struct block_file *from, const struct block_file *to,
                  enum block_format to_format) MUST_CHECK;
/* Takes the mark back after a switch that did not come about. */
void successor_clear(const struct block_file *file);

/* 1 and the mark of an open file, 0 when there is none, or what it says is not ours. */
int successor_get(int fd, struct successor *ret_successor) MUST_CHECK;

/* As it, but 0 as well when the next file is not there any more. */
int successor_find(int fd, struct successor *ret_successor) MUST_CHECK;
/* Whether an open file is a copy that is not whole. */
bool successor_is_unfinished(int fd);

enum successor_state {
    SUCCESSOR_CURRENT,
    SUCCESSOR_UNFINISHED, /* a copy that is not whole: under way, or it was interrupted */
    SUCCESSOR_CONTINUED   /* stale: the disk went on in another file, which is there */
};

/* What the marks of an open file say; *ret_next only with SUCCESSOR_CONTINUED. */
enum successor_state successor_state(int fd, struct successor *ret_next);
/* The same for a file by name; one that cannot be opened, or is a server's, has no marks. */
enum successor_state successor_state_of(const char *path, struct successor *ret_next);

/* Takes the marks from a file by name, for whoever keeps a record of what stands on what. */
void successor_forget(const char *path);

/* -ESTALE for a file that is not whole. path is for messages. */
int successor_check_whole(const struct block_file *file, const char *path, struct err *err)
    MUST_CHECK;
/* -ESTALE, naming the next file, while that is there; 0 with a warning when it is gone. path is for
 * messages. */
int successor_check(const struct block_file *file, const char *path, struct err *err) MUST_CHECK;

/* Tells the log what has happened; and when nothing was marked, that this is the user's to know. */
void successor_log(const char *before, const char *now, bool is_noted);

/* The name of a file from the root; -ENOENT when it has none any more. */
int block_file_path(const struct block_file *file, char *ret_path, size_t size) MUST_CHECK;

#endif

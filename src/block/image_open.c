/* Opening a chain of images, by the caller's rules alone. */
#include "block/block_int.h"
#include "block/file.h"
#include "block/image.h"
#include "block/successor.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

const char *block_format_name(enum block_format format)
{
    return format == BLOCK_FORMAT_QCOW2 ? "qcow2" : "raw";
}

int block_format_parse(const char *name, enum block_format *ret_format)
{
    if (strcmp(name, "raw") == 0) {
        *ret_format = BLOCK_FORMAT_RAW;
    } else if (strcmp(name, "qcow2") == 0) {
        *ret_format = BLOCK_FORMAT_QCOW2;
    } else {
        return -EINVAL;
    }
    return 0;
}

/* What is left of the caller's permission to open backing images. */
struct permission {
    const struct block_layer *layers;
    unsigned layer_count;
    const char *dir;
    bool none; /* stay with this layer */
};

/* The rest of a whole path that begins with the directory itself, or NULL. */
static const char *below(const char *dir, const char *path)
{
    size_t len = strlen(dir);

    while (len > 0 && dir[len - 1] == '/') {
        len--;
    }
    if (strncmp(path, dir, len) != 0 || path[len] != '/') {
        return NULL;
    }
    return path + len + strspn(path + len, "/");
}

/*
 * A name from inside an image, below the directory that the caller allowed.
 * Links could lead out of it, so none is followed.
 */
static int open_below(const char *dir, const char *name, const char *of, struct err *err)
{
    struct open_how how = {
        .flags = O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };
    CLEANUP_CLOSE int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    char whole[PATH_MAX];
    long fd;

    if (dir_fd < 0) {
        return err_set_errno(err, -errno, "cannot open the directory of backing images '%s'", dir);
    }
    if (name[0] == '/') {
        const char *rest = below(dir, name);

        if (rest == NULL && realpath(dir, whole) != NULL) {
            rest = below(whole, name);
        }
        name = rest != NULL ? rest : name;
    }
    fd = syscall(SYS_openat2, dir_fd, name, &how, sizeof(how));
    if (fd < 0) {
        return err_set_errno(err, -errno,
                             "cannot open the backing image of '%s' below '%s', where alone it "
                             "may be",
                             of, dir);
    }
    return (int)fd;
}

static int next_layer(struct block_file *file, const char *path, struct permission *allowed,
                      struct err *err, struct block_layer *ret_layer, char *name, size_t name_size)
{
    char format[16] = "";
    int r = qcow2_read_backing_name(file, path, err, name, name_size, format, sizeof(format));

    if (r < 0 || name[0] == 0 || allowed->none) {
        name[0] = 0;
        return r;
    }
    if (allowed->layer_count > 0) {
        *ret_layer = allowed->layers[0];
        allowed->layers++;
        allowed->layer_count--;
        return 0;
    }
    if (!allowed->dir) {
        return err_set(err, -EPERM,
                       "image '%s' stands on a backing image that was not given; give the chain "
                       "or the directory to look in",
                       path);
    }
    if (block_format_parse(format, &ret_layer->format) < 0) {
        return err_set(err, -EINVAL,
                       "image '%s' does not say that its backing image is raw or qcow2, and "
                       "formats are not guessed; give the chain",
                       path);
    }
    ret_layer->path = name;
    ret_layer->fd = open_below(allowed->dir, name, path, err);
    return ret_layer->fd < 0 ? ret_layer->fd : 0;
}

static int open_layer(const struct block_config *config, struct permission *allowed, unsigned depth,
                      struct err *err, struct block_image **ret_image);

/* The image that this one stands on; none is no error. */
/* NOLINTNEXTLINE(misc-no-recursion): as deep as BLOCK_MAX_LAYERS allows */
static int open_backing(struct block_file *file, const char *path, struct permission *allowed,
                        unsigned depth, struct err *err, struct block_image **ret_image)
{
    struct block_layer layer = {.fd = -1};
    struct block_config config = {.read_only = true};
    bool is_given = allowed->layer_count > 0;
    char name[1024] = "";
    int r = next_layer(file, path, allowed, err, &layer, name, sizeof(name));

    if (r < 0 || name[0] == 0) {
        return r;
    }
    if (depth + 1 >= BLOCK_MAX_LAYERS) {
        r = err_set(err, -ELOOP, "the chain of '%s' has more than %u images, or goes in a circle",
                    path, BLOCK_MAX_LAYERS);
    } else {
        config.format = layer.format;
        config.path = layer.path;
        config.fd = layer.fd;
        r = open_layer(&config, allowed, depth + 1, err, ret_image);
    }
    if (r < 0 && !is_given) {
        (void)close(layer.fd); /* it was opened here, for reading */
    }
    return r;
}

/* NOLINTNEXTLINE(misc-no-recursion): as deep as BLOCK_MAX_LAYERS allows */
static int open_layer(const struct block_config *config, struct permission *allowed, unsigned depth,
                      struct err *err, struct block_image **ret_image)
{
    struct block_file_options options = {
        .path = config->path,
        .fd = config->fd,
        .read_only = config->read_only,
        .direct = config->direct,
    };
    struct block_image *backing = NULL;
    struct block_file *file = NULL;
    int r;

    if (config->format != BLOCK_FORMAT_RAW && config->format != BLOCK_FORMAT_QCOW2) {
        return err_set(err, -EINVAL, "'%s': unknown disk format", config->path);
    }
    r = block_file_open(&options, err, &file);
    if (r < 0) {
        return r;
    }
    r = config->may_be_unfinished ? 0 : successor_check_whole(file, config->path, err);
    if (r == 0 && config->must_be_current) {
        r = successor_check(file, config->path, err);
    }
    if (r < 0) {
        /* Nothing of it may be touched. */
    } else if (config->format == BLOCK_FORMAT_RAW) {
        r = raw_open(file, config->path, config->read_only, err, ret_image);
    } else {
        r = open_backing(file, config->path, allowed, depth, err, &backing);
        if (r == 0) {
            r = qcow2_open(file, config, backing, err, ret_image);
        }
    }
    if (r < 0) {
        block_image_close(backing);
        if (config->fd >= 0) {
            file->fd = -1; /* stays the caller's */
        }
        block_file_close(file);
    }
    return r;
}

int block_image_open(const struct block_config *config, struct err *err,
                     struct block_image **ret_image)
{
    struct permission allowed = {
        .layers = config->backing,
        .layer_count = config->backing_count,
        .dir = config->backing_dir,
        .none = config->no_backing,
    };
    struct block_image *image = NULL;
    int r = open_layer(config, &allowed, 0, err, &image);

    if (r == 0 && allowed.layer_count > 0) {
        block_image_close(image);
        return err_set(err, -EINVAL, "more backing images were given than '%s' has", config->path);
    }
    if (r == 0) {
        *ret_image = image;
    }
    return r;
}

void block_image_close(struct block_image *image)
{
    while (image) {
        struct block_image *backing = image->backing;

        image->ops->close(image);
        image = backing;
    }
}

/* The verbs of images, disks, pools and the host, and their options. */
#include "cli/cli.h"
#include "cli/verb_tables.h"

#define BUILD(field) offsetof(struct build_options, field)
#define GET(field) offsetof(struct get_options, field)
#define DISK(field) offsetof(struct disk_options, field)
#define VOLUME(field) offsetof(struct volume_options, field)

static const struct option_spec build_specs[] = {
    {"--name", "NAME", "name of the image (the recipe's name)", OPTION_TEXT, BUILD(name)},
    {"--size", "SIZE", "length of the disk, sparse (4G)", OPTION_TEXT, BUILD(size)},
    {"--packages", "A,B", "more Debian packages", OPTION_TEXT, BUILD(packages)},
    {"--mode", "MODE", "root, unshare or fakechroot (what the host allows)", OPTION_TEXT,
     BUILD(mode)},
    {"--no-cache", NULL, "install anew, even when a disk of the last day is at hand", OPTION_FLAG,
     BUILD(no_cache)},
    {.name = NULL},
};

#define GET_SPECS                                                                               \
    {"--name", "NAME", "name of the image (the file's)", OPTION_TEXT, GET(name)},               \
        {"--checksum", "KIND:HEX", "sha256:... or sha512:... of the file", OPTION_TEXT,         \
         GET(checksum)},                                                                        \
        {"--format", "FORMAT", "raw, qcow2, vmdk, vhd, vhdx, vdi or ova (what the name says)",  \
         OPTION_TEXT, GET(format)},                                                             \
        {"--compression", "KIND", "none, gz, xz or zst (what the name says)", OPTION_TEXT,      \
         GET(compression)},                                                                     \
        {"--max-size", "SIZE", "refuse a longer disk (256G)", OPTION_TEXT, GET(max_size)},      \
    {                                                                                           \
        "--replace", NULL, "take the place of an image of that name", OPTION_FLAG, GET(replace) \
    }

static const struct option_spec fetch_specs[] = {
    GET_SPECS,
    {"--insecure-no-checksum", NULL, "take whatever the address gives, unverified", OPTION_FLAG,
     GET(insecure_no_checksum)},
    {.name = NULL},
};

static const struct option_spec import_specs[] = {
    GET_SPECS,
    {.name = NULL},
};

static const struct option_spec export_specs[] = {
    {"--format", "FORMAT", "raw, qcow2, vmdk, vhd, vhdx, vdi or ova (what the name says)",
     OPTION_TEXT, GET(format)},
    {.name = NULL},
};

#define FORMAT_SPEC                                                                          \
    {                                                                                        \
        "--format", "FORMAT", "raw or qcow2 (what the name says)", OPTION_TEXT, DISK(format) \
    }
#define BACKING_DIR_SPEC                                                               \
    {                                                                                  \
        "--backing-dir", "DIR", "where backing images may be (the image's directory)", \
            OPTION_TEXT, DISK(backing_dir)                                             \
    }
#define DISK_JSON_SPEC                                     \
    {                                                      \
        "--json", NULL, "as JSON", OPTION_FLAG, DISK(json) \
    }
#define PREALLOCATION_SPEC                                                             \
    {                                                                                  \
        "--preallocation", "MODE", "off, metadata, falloc or full (off)", OPTION_TEXT, \
            DISK(preallocation)                                                        \
    }
#define CREATE_SPECS                                                                             \
    PREALLOCATION_SPEC,                                                                          \
        {"--cluster-size", "SIZE", "512 to 2M (64K); qcow2", OPTION_TEXT, DISK(cluster_size)},   \
        {"--compression", "KIND", "zlib or zstd (zlib); qcow2", OPTION_TEXT, DISK(compression)}, \
        {"--refcount-bits", "N", "1, 2, 4 ... 64 (16); qcow2", OPTION_NUMBER,                    \
         DISK(refcount_bits)},                                                                   \
        {"--extended-l2", NULL, "allocate parts of clusters; qcow2", OPTION_FLAG,                \
         DISK(extended_l2)},                                                                     \
        {"--lazy-refcounts", NULL, "repair after a crash instead of ordering writes; qcow2",     \
         OPTION_FLAG, DISK(lazy_refcounts)},                                                     \
    {                                                                                            \
        "--replace", NULL, "take the place of a file of that name", OPTION_FLAG, DISK(replace)   \
    }

static const struct option_spec create_specs[] = {
    FORMAT_SPEC,
    CREATE_SPECS,
    {"--backing", "FILE", "stand on this image, named as seen from the new one", OPTION_TEXT,
     DISK(backing)},
    {"--backing-format", "FORMAT", "raw or qcow2 (what its name says)", OPTION_TEXT,
     DISK(backing_format)},
    {.name = NULL},
};

static const struct option_spec clone_specs[] = {FORMAT_SPEC, {.name = NULL}};

static const struct option_spec info_specs[] = {FORMAT_SPEC, DISK_JSON_SPEC, {.name = NULL}};

static const struct option_spec map_specs[] = {
    FORMAT_SPEC, BACKING_DIR_SPEC, DISK_JSON_SPEC, {.name = NULL}};

static const struct option_spec check_specs[] = {
    FORMAT_SPEC,
    DISK_JSON_SPEC,
    {"--repair", "WHAT", "leaks, or all", OPTION_TEXT, DISK(repair)},
    {.name = NULL},
};

static const struct option_spec compare_specs[] = {
    FORMAT_SPEC,
    {"--other-format", "FORMAT", "of the second: raw or qcow2 (what its name says)", OPTION_TEXT,
     DISK(other_format)},
    BACKING_DIR_SPEC,
    {.name = NULL},
};

static const struct option_spec convert_specs[] = {
    FORMAT_SPEC,
    {"--to-format", "FORMAT", "of the new file: raw or qcow2 (what its name says)", OPTION_TEXT,
     DISK(other_format)},
    BACKING_DIR_SPEC,
    {"--compress", NULL, "pack the clusters; qcow2", OPTION_FLAG, DISK(compress)},
    CREATE_SPECS,
    {.name = NULL},
};

static const struct option_spec resize_specs[] = {
    FORMAT_SPEC,
    BACKING_DIR_SPEC,
    PREALLOCATION_SPEC,
    {"--shrink", NULL, "a shorter disk is meant; its end is lost", OPTION_FLAG, DISK(shrink)},
    {.name = NULL},
};

#define NBD(field) offsetof(struct nbd_serve_options, field)

static const struct option_spec nbd_specs[] = {
    {"--socket", "PATH", "where clients find it; made, for this user alone", OPTION_TEXT,
     NBD(socket)},
    {"--name", "NAME", "of the export (disk)", OPTION_TEXT, NBD(name)},
    {"--read-only", NULL, "let nobody write", OPTION_FLAG, NBD(read_only)},
    {"--format", "FORMAT", "raw or qcow2 (what the name says)", OPTION_TEXT, NBD(format)},
    {"--backing-dir", "DIR", "where backing images may be (the image's directory)", OPTION_TEXT,
     NBD(backing_dir)},
    {.name = NULL},
};

#define POOL_SPEC                                                                  \
    {                                                                              \
        "--pool", "POOL", "the volume's pool (default)", OPTION_TEXT, VOLUME(pool) \
    }
#define VOLUME_JSON_SPEC                                     \
    {                                                        \
        "--json", NULL, "as JSON", OPTION_FLAG, VOLUME(json) \
    }

static const struct option_spec pool_specs[] = {
    {"--capacity", "SIZE", "use no more than this (what the file system has)", OPTION_TEXT,
     offsetof(struct pool_options, capacity)},
    {"--threshold", "PERCENT", "warn when so much is used (80)", OPTION_NUMBER,
     offsetof(struct pool_options, threshold)},
    {.name = NULL},
};

static const struct option_spec volume_specs[] = {POOL_SPEC, {.name = NULL}};

static const struct option_spec volume_create_specs[] = {
    POOL_SPEC,
    {"--image", "IMAGE", "begin as a copy of this image's disk", OPTION_TEXT, VOLUME(image)},
    {.name = NULL},
};

static const struct option_spec volume_show_specs[] = {POOL_SPEC, VOLUME_JSON_SPEC, {.name = NULL}};

static const struct option_spec volume_resize_specs[] = {
    POOL_SPEC,
    {"--shrink", NULL, "a shorter volume is meant; its end is lost", OPTION_FLAG, VOLUME(shrink)},
    {.name = NULL},
};

static const struct option_spec volume_clone_specs[] = {
    POOL_SPEC,
    {"--snapshot", "NAME", "as it was then (as it is now)", OPTION_TEXT, VOLUME(snapshot)},
    {.name = NULL},
};

static const struct option_spec volume_copy_specs[] = {
    POOL_SPEC,
    {"--format", "FORMAT", "raw or qcow2: the file's (what its name says)", OPTION_TEXT,
     VOLUME(format)},
    {"--replace", NULL, "what is there already", OPTION_FLAG, VOLUME(replace)},
    {.name = NULL},
};

static const struct option_spec prune_specs[] = {
    {"--days", "N", "keep what was used within N days (0)", OPTION_NUMBER,
     offsetof(struct prune_options, days)},
    {.name = NULL},
};

static const struct option_spec list_specs[] = {
    {"--json", NULL, "as JSON", OPTION_FLAG, offsetof(struct list_options, json)},
    {.name = NULL},
};

const struct verb verbs_of_files[] = {
    {"image", "build", "debian|debian-bench|busybox", "build an image", build_specs, 1, 1, false,
     verb_image_build, NULL},
    {"image", "catalogue", "", "list what can be fetched by name", list_specs, 0, 0, false,
     verb_image_catalogue, NULL},
    {"image", "fetch", "NAME|URL", "make an image of a disk from a server", fetch_specs, 1, 1,
     false, verb_image_fetch, NULL},
    {"image", "import", "FILE", "make an image of a disk in a file", import_specs, 1, 1, false,
     verb_image_import, NULL},
    {"image", "export", "NAME FILE", "write an image's disk into a file", export_specs, 2, 2, false,
     verb_image_export, NULL},
    {"image", "prune", "", "empty the cache of downloads and built disks", prune_specs, 0, 0, false,
     verb_image_prune, NULL},
    {"image", "create", "FILE [SIZE]", "make an empty disk in a file", create_specs, 1, 2, false,
     verb_image_create, NULL},
    {"image", "clone", "FILE NEW", "make an image that stands on another", clone_specs, 2, 2, false,
     verb_image_clone, NULL},
    {"image", "info", "FILE", "tell what an image file is", info_specs, 1, 1, false,
     verb_image_info, NULL},
    {"image", "check", "FILE", "look for damage in an image file", check_specs, 1, 1, false,
     verb_image_check, NULL},
    {"image", "compare", "FILE FILE", "whether two disks are the same", compare_specs, 2, 2, false,
     verb_image_compare, NULL},
    {"image", "convert", "FILE FILE", "copy a disk into another format", convert_specs, 2, 2, false,
     verb_image_convert, NULL},
    {"image", "map", "FILE", "tell where a disk has data", map_specs, 1, 1, false, verb_image_map,
     NULL},
    {"image", "resize", "FILE SIZE|+SIZE", "change the length of a disk", resize_specs, 2, 2, false,
     verb_image_resize, NULL},
    {"image", "snapshot", "ACTION FILE [NAME]", "create, apply, delete or list snapshots in a file",
     map_specs, 2, 3, false, verb_image_snapshot, NULL},
    {"image", "list", "", "list images", list_specs, 0, 0, false, verb_image_list, NULL},
    {"image", "show", "NAME", "show one image", list_specs, 1, 1, false, verb_image_show, NULL},
    {"image", "remove", "NAME", "delete an image", NULL, 1, 1, false, verb_image_remove, NULL},
    {"nbd", "serve", "FILE", "let NBD clients use a disk, until a signal ends it", nbd_specs, 1, 1,
     false, verb_nbd_serve, NULL},
    {"pool", "create", "NAME DIR|ADDRESS", "keep volumes in a directory, or use a server's",
     pool_specs, 2, 2, false, verb_pool_create, NULL},
    {"pool", "list", "", "list pools and their room", list_specs, 0, 0, false, verb_pool_list,
     NULL},
    {"pool", "remove", "NAME", "forget an empty pool", NULL, 1, 1, false, verb_pool_remove, NULL},
    {"pool-volume", "create", "NAME [SIZE]", "make a volume", volume_create_specs, 1, 2, false,
     verb_volume_create, NULL},
    {"pool-volume", "list", "", "list volumes", volume_show_specs, 0, 0, false, verb_volume_list,
     NULL},
    {"pool-volume", "show", "NAME", "show one volume", volume_show_specs, 1, 1, false,
     verb_volume_show, NULL},
    {"pool-volume", "resize", "NAME SIZE|+SIZE", "change the length of a volume",
     volume_resize_specs, 2, 2, false, verb_volume_resize, NULL},
    {"pool-volume", "clone", "NAME NEW", "make a volume that begins as another", volume_clone_specs,
     2, 2, false, verb_volume_clone, NULL},
    {"pool-volume", "snapshot", "ACTION NAME [SNAPSHOT]",
     "create, revert, delete or list snapshots", volume_show_specs, 2, 3, false,
     verb_volume_snapshot, NULL},
    {"pool-volume", "copy-to", "NAME FILE", "copy a volume into a file", volume_copy_specs, 2, 2,
     false, verb_volume_copy_to, NULL},
    {"pool-volume", "copy-from", "NAME FILE", "copy a disk from a file into a volume",
     volume_copy_specs, 2, 2, false, verb_volume_copy_from, NULL},
    {"pool-volume", "delete", "NAME", "delete a volume and its snapshots", volume_specs, 1, 1,
     false, verb_volume_delete, NULL},
    {NULL, "doctor", "", "check this host, and say how to mend it", list_specs, 0, 0, false,
     verb_doctor, NULL},
    {.name = NULL},
};

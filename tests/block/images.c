/*
 * Image files between this project and qemu-img, both ways; dirty bitmaps; the
 * rules by which backing images are opened.
 */
#include "scratch.h"

#include "block/block_int.h"
#include "block/file.h"
#include "block/qcow2.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIB (1ull << 20)
#define SIZE (5 * MIB)

static unsigned count;

static void ok(const char *name)
{
    printf("ok %u - %s\n", ++count, name);
    (void)fflush(stdout);
}

static void expect_true(bool is_true, const char *what)
{
    if (!is_true) {
        fail("%s", what);
    }
}

static struct block_image *open_with(struct block_config config, int want)
{
    struct block_image *image = NULL;
    struct err err = {0};
    int r;

    config.fd = -1;
    r = block_image_open(&config, &err, &image);
    if (r != want) {
        fail("open '%s': %d, not %d: %s", config.path, r, want, err.text);
    }
    return image;
}

static struct block_image *open_qcow2(const char *name, bool read_only)
{
    return open_with((struct block_config){.format = BLOCK_FORMAT_QCOW2,
                                           .path = scratch_path(name),
                                           .read_only = read_only},
                     0);
}

static void write_pattern(const char *name)
{
    FILE *file = fopen(scratch_path(name), "we");
    struct rng rng = {7};

    for (uint64_t i = 0; i < SIZE / 512; i++) {
        uint64_t sector[64] = {0};

        for (unsigned j = 0; j < 64 && i % 300 < 200; j++) {
            sector[j] = i % 3 ? i : rng_next(&rng);
        }
        expect_true(fwrite(sector, 512, 1, file) == 1, "write the pattern");
    }
    (void)fclose(file);
}

static void overwrite(const char *name, uint64_t offset, const void *bytes, size_t size)
{
    FILE *file = fopen(scratch_path(name), "r+e");

    expect_true(file && fseek(file, (long)offset, SEEK_SET) == 0 &&
                    fwrite(bytes, size, 1, file) == 1 && fclose(file) == 0,
                "overwrite a part of the image");
}

static void compare_with_pattern(struct block_image *image)
{
    FILE *file = fopen(scratch_path("pattern.raw"), "re");
    uint8_t *is = malloc(SIZE), *should = malloc(SIZE);

    expect_true(fread(should, SIZE, 1, file) == 1, "read the pattern");
    expect_true(block_image_pread(image, is, SIZE, 0) == 0, "read the image");
    expect_true(memcmp(is, should, SIZE) == 0, "the image is not the pattern");
    (void)fclose(file);
    free(is);
    free(should);
}

static void expect_clean(struct block_image *image)
{
    struct block_check_result result;
    struct err err = {0};

    if (block_image_check(image, BLOCK_REPAIR_NONE, NULL, NULL, &result, &err) < 0) {
        fail("%s", err.text);
    }
    expect_true(result.corruptions + result.leaks + result.errors == 0, "the check finds trouble");
}

static void test_foreign_images_are_read(void)
{
    static const char *const variants[] = {
        "-o compat=1.1",
        "-o compat=0.10",
        "-o cluster_size=512",
        "-o cluster_size=2M",
        "-o refcount_bits=1",
        "-o refcount_bits=64",
        "-o lazy_refcounts=on",
        "-o extended_l2=on",
        "-o extended_l2=on,cluster_size=2M",
        "-c",
        "-c -o cluster_size=4k",
        "-c -o compression_type=zstd",
        "-o preallocation=metadata",
        "-o preallocation=falloc",
        "-o preallocation=full",
    };

    for (size_t i = 0; i < ARRAY_LEN(variants); i++) {
        struct block_image *image;

        fail_context("%s", variants[i]);
        run_command(1, "qemu-img convert -f raw -O qcow2 %s %s %s", variants[i],
                    scratch_path("pattern.raw"), scratch_path("foreign.qcow2"));
        image = open_qcow2("foreign.qcow2", false);
        expect_clean(image);
        compare_with_pattern(image);
        /* And written to: what qemu-img then sees is what is read here. */
        expect_true(block_image_pwrite(image, "hello world, all", 16, 0) == 0, "write");
        expect_true(block_image_simple(image, BLOCK_DISCARD, MIB, MIB, true) == 0, "discard");
        block_image_close(image);
        run_command(1, "qemu-img check -q -f qcow2 %s", scratch_path("foreign.qcow2"));
    }
    ok("images of qemu-img are read and written");
}

static void copy_pattern_to(struct block_image *image, bool compressed, uint32_t cluster)
{
    FILE *file = fopen(scratch_path("pattern.raw"), "re");
    uint8_t *buf = malloc(cluster);

    for (uint64_t at = 0; at < SIZE; at += cluster) {
        size_t len = SIZE - at < cluster ? SIZE - at : cluster;

        expect_true(fread(buf, len, 1, file) == 1, "read the pattern");
        expect_true((compressed ? qcow2_write_compressed(image, buf, len, at)
                                : block_image_pwrite(image, buf, len, at)) == 0,
                    "write");
    }
    (void)fclose(file);
    free(buf);
}

static void test_our_images_are_read_by_qemu(void)
{
    static const struct {
        struct block_create_options options;
        bool compressed;
    } variants[] = {
        {{.cluster_bytes = 65536}, false},
        {{.cluster_bytes = 512}, false},
        {{.cluster_bytes = 2 * MIB}, false},
        {{.cluster_bytes = 65536, .version = 2}, false},
        {{.cluster_bytes = 65536, .extended_l2 = true}, false},
        {{.cluster_bytes = 4096, .refcount_bits = 2}, false},
        {{.cluster_bytes = 65536}, true},
        {{.cluster_bytes = 4096}, true},
        {{.cluster_bytes = 65536, .compression = BLOCK_COMPRESSION_ZSTD}, true},
        {{.cluster_bytes = 65536, .prealloc = BLOCK_PREALLOC_METADATA}, false},
        {{.cluster_bytes = 4096, .prealloc = BLOCK_PREALLOC_FALLOC}, false},
        {{.cluster_bytes = 65536, .prealloc = BLOCK_PREALLOC_FULL}, false},
    };

    for (size_t i = 0; i < ARRAY_LEN(variants); i++) {
        struct block_create_options options = variants[i].options;
        struct block_image *image;
        struct err err = {0};

        fail_context("variant %zu", i);
        options.format = BLOCK_FORMAT_QCOW2;
        options.path = scratch_path("ours.qcow2");
        options.replace = true;
        options.size_bytes = SIZE;
        if (block_image_create(&options, &err) < 0) {
            fail("%s", err.text);
        }
        run_command(1, "qemu-img check -q -f qcow2 %s", scratch_path("ours.qcow2"));
        image = open_qcow2("ours.qcow2", false);
        copy_pattern_to(image, variants[i].compressed, options.cluster_bytes);
        block_image_close(image);
        run_command(1, "qemu-img check -q -f qcow2 %s", scratch_path("ours.qcow2"));
        run_command(1, "qemu-img compare -q -f qcow2 -F raw %s %s", scratch_path("ours.qcow2"),
                    scratch_path("pattern.raw"));
    }
    ok("our images are read by qemu-img");
}

static void test_foreign_snapshots(void)
{
    struct qcow2_snapshot_info *infos = NULL;
    struct block_image *image;
    struct err err = {0};
    unsigned snapshots = 0;
    uint8_t sector[512];

    fail_context("snapshots");
    run_command(1, "qemu-img convert -f raw -O qcow2 %s %s", scratch_path("pattern.raw"),
                scratch_path("snap.qcow2"));
    run_command(1, "qemu-img snapshot -c first %s", scratch_path("snap.qcow2"));
    image = open_qcow2("snap.qcow2", false);
    expect_true(qcow2_snapshot_list(image, &infos, &snapshots, &err) == 0 && snapshots == 1 &&
                    strcmp(infos[0].name, "first") == 0,
                "the snapshot is not listed");
    free(infos);
    memset(sector, 0x5a, sizeof(sector));
    expect_true(block_image_pwrite(image, sector, 512, 512) == 0, "write");
    expect_true(qcow2_snapshot_create(image, "second", &err) == 0, "create");
    expect_true(qcow2_snapshot_apply(image, "first", &err) == 0, "apply");
    compare_with_pattern(image);
    expect_true(qcow2_snapshot_read(image, "second", sector, 512, 512, &err) == 0 &&
                    sector[511] == 0x5a,
                "read of a snapshot");
    block_image_close(image);
    run_command(1, "qemu-img check -q -f qcow2 %s", scratch_path("snap.qcow2"));
    run_command(1, "qemu-img snapshot -a second %s", scratch_path("snap.qcow2"));
    run_command(1, "qemu-img snapshot -d first %s", scratch_path("snap.qcow2"));
    image = open_qcow2("snap.qcow2", false);
    expect_true(block_image_pread(image, sector, 512, 512) == 0 && sector[0] == 0x5a, "read");
    expect_true(qcow2_snapshot_delete(image, "second", &err) == 0, "delete");
    expect_clean(image);
    block_image_close(image);
    run_command(1, "qemu-img check -q -f qcow2 %s", scratch_path("snap.qcow2"));
    ok("snapshots of both");
}

static void expect_dirty(struct block_image *image, uint64_t from, uint64_t offset, uint64_t len)
{
    uint64_t is_offset = 0, is_len = 0;
    struct err err = {0};

    if (qcow2_bitmap_next(image, "b", from, &is_offset, &is_len, &err) < 0) {
        fail("%s", err.text);
    }
    if (is_len != len || (len > 0 && is_offset != offset)) {
        fail("dirty from %llu: %llu+%llu", (unsigned long long)from, (unsigned long long)is_offset,
             (unsigned long long)is_len);
    }
}

static void test_bitmaps(void)
{
    struct block_image *image;
    struct qcow2_bitmap_info *infos = NULL;
    unsigned bitmaps = 0;
    struct err err = {0};
    uint8_t sector[512] = {1};

    fail_context("bitmaps");
    run_command(1, "qemu-img create -q -f qcow2 %s 5M", scratch_path("bitmap.qcow2"));
    image = open_qcow2("bitmap.qcow2", false);
    if (qcow2_bitmap_add(image, "b", 65536, &err) < 0) {
        fail("%s", err.text);
    }
    expect_dirty(image, 0, 0, 0);
    expect_true(block_image_pwrite(image, sector, 512, 3 * 65536 + 512) == 0, "write");
    expect_true(block_image_pwrite(image, sector, 512, 4 * 65536) == 0, "write");
    expect_true(qcow2_bitmap_set_enabled(image, "b", false, &err) == 0, "disable");
    expect_true(block_image_pwrite(image, sector, 512, 9 * 65536) == 0, "write");
    expect_true(qcow2_bitmap_set_enabled(image, "b", true, &err) == 0, "enable");
    expect_dirty(image, 0, 3 * 65536, 2 * 65536);
    block_image_close(image);
    run_command(1, "qemu-img check -q -f qcow2 %s", scratch_path("bitmap.qcow2"));
    run_command(1, "qemu-img info -f qcow2 %s | grep -q 'name: b'", scratch_path("bitmap.qcow2"));

    image = open_qcow2("bitmap.qcow2", false);
    expect_dirty(image, 0, 3 * 65536, 2 * 65536);
    expect_dirty(image, 5 * 65536, 0, 0);
    expect_true(block_image_pwrite(image, sector, 512, 20 * 65536) == 0, "write");
    expect_dirty(image, 5 * 65536, 20 * 65536, 65536);
    /* What a crash now leaves says that the bitmap lacks marks. */
    expect_true(block_image_simple(image, BLOCK_FLUSH, 0, 0, false) == 0, "flush");
    run_command(1, "cp %s %s", scratch_path("bitmap.qcow2"), scratch_path("crashed.qcow2"));
    block_image_close(image);
    run_command(1, "qemu-img bitmap --clear %s b", scratch_path("bitmap.qcow2"));
    image = open_qcow2("bitmap.qcow2", false);
    expect_dirty(image, 0, 0, 0);
    expect_true(qcow2_bitmap_remove(image, "b", &err) == 0, "remove");
    expect_clean(image);
    block_image_close(image);
    run_command(1, "qemu-img check -q -f qcow2 %s", scratch_path("bitmap.qcow2"));

    image = open_qcow2("crashed.qcow2", false);
    expect_true(qcow2_bitmap_list(image, &infos, &bitmaps, &err) == 0 && bitmaps == 1 &&
                    infos[0].is_inconsistent,
                "a bitmap in use at a crash counts as consistent");
    free(infos);
    expect_true(qcow2_bitmap_remove(image, "b", &err) == 0, "remove");
    expect_clean(image);
    block_image_close(image);
    ok("dirty bitmaps");
}

static void test_backing_rules(void)
{
    struct block_config config = {.format = BLOCK_FORMAT_QCOW2, .read_only = true};
    struct block_layer base = {BLOCK_FORMAT_RAW, scratch_path("pattern.raw"), -1};
    struct block_image *image;
    char dir[512];

    fail_context("backing");
    (void)snprintf(dir, sizeof(dir), "%s", scratch_path("."));
    run_command(1,
                "cd %s && mkdir -p below && cp pattern.raw below/base.raw && "
                "ln -sf ../pattern.raw below/link.raw && "
                "qemu-img create -q -u -f qcow2 -b base.raw -F raw inside.qcow2 5M && "
                "qemu-img create -q -u -f qcow2 -b ../pattern.raw -F raw outside.qcow2 5M && "
                "qemu-img create -q -u -f qcow2 -b link.raw -F raw linked.qcow2 5M && "
                "qemu-img create -q -u -f qcow2 -b /etc/hostname -F raw host.qcow2 5M && "
                "qemu-img create -q -u -f qcow2 -b loop.qcow2 -F qcow2 below/loop.qcow2 5M",
                dir);
    config.path = scratch_path("inside.qcow2");
    (void)open_with(config, -EPERM);
    config.backing = &base;
    config.backing_count = 1;
    image = open_with(config, 0);
    compare_with_pattern(image);
    block_image_close(image);
    config.backing_count = 0;
    config.backing_dir = scratch_path("below");
    image = open_with(config, 0);
    compare_with_pattern(image);
    block_image_close(image);
    config.path = scratch_path("outside.qcow2");
    (void)open_with(config, -EXDEV);
    config.path = scratch_path("host.qcow2");
    (void)open_with(config, -EXDEV);
    config.path = scratch_path("linked.qcow2");
    (void)open_with(config, -ELOOP);
    config.path = scratch_path("below/loop.qcow2");
    (void)open_with(config, -ELOOP);
    ok("backing images are opened by the caller's rules alone");
}

static void test_refusals(void)
{
    static const uint8_t luks[] = {0, 0, 0, 2};
    struct block_config config = {.format = BLOCK_FORMAT_QCOW2, .read_only = true};

    fail_context("refusals");
    config.path = scratch_path("refused.qcow2");
    run_command(1, "cd %s && qemu-img create -q -f qcow2 -o data_file=d.raw refused.qcow2 1M",
                scratch_path("."));
    (void)open_with(config, -ENOTSUP);
    /*
     * AES, and LUKS by its number in the header (crypt_method): for LUKS itself qemu-img
     * measures CPU time, and gives up on a host that counts it coarsely.
     */
    run_command(1,
                "cd %s && qemu-img create -q --object secret,id=s,data=x -f qcow2 "
                "-o encrypt.format=aes,encrypt.key-secret=s refused.qcow2 1M",
                scratch_path("."));
    (void)open_with(config, -ENOTSUP);
    overwrite("refused.qcow2", 32, luks, sizeof(luks));
    (void)open_with(config, -ENOTSUP);
    config.path = scratch_path("pattern.raw");
    (void)open_with(config, -EINVAL);
    ok("what is not supported is refused by name");
}

static void test_repair(void)
{
    struct block_image *image;
    struct block_check_result result;
    struct err err = {0};
    static const uint8_t zeros[32] = {0};

    fail_context("repair");
    run_command(1, "qemu-img convert -f raw -O qcow2 %s %s", scratch_path("pattern.raw"),
                scratch_path("broken.qcow2"));
    /* The first refcount block, of which the third cluster is: all counts zero. */
    overwrite("broken.qcow2", 131072, zeros, sizeof(zeros));
    image = open_with((struct block_config){.format = BLOCK_FORMAT_QCOW2,
                                            .path = scratch_path("broken.qcow2"),
                                            .for_repair = true},
                      0);
    expect_true(block_image_check(image, BLOCK_REPAIR_NONE, NULL, NULL, &result, &err) == 0 &&
                    result.corruptions > 0,
                "broken refcounts go unseen");
    expect_true(block_image_check(image, BLOCK_REPAIR_ALL, NULL, NULL, &result, &err) == 0 &&
                    result.corruptions == 0 && result.corruptions_fixed > 0,
                "broken refcounts are not repaired");
    compare_with_pattern(image);
    block_image_close(image);
    run_command(1, "qemu-img check -q -f qcow2 %s", scratch_path("broken.qcow2"));
    run_command(1, "qemu-img compare -q -f qcow2 -F raw %s %s", scratch_path("broken.qcow2"),
                scratch_path("pattern.raw"));
    ok("broken refcounts are repaired");
}

int main(void)
{
    if (!have_qemu_img()) {
        printf("qemu-img is not installed\n");
        return 77;
    }
    scratch_init();
    write_pattern("pattern.raw");
    test_foreign_images_are_read();
    test_our_images_are_read_by_qemu();
    test_foreign_snapshots();
    test_bitmaps();
    test_backing_rules();
    test_refusals();
    test_repair();
    printf("1..%u\n", count);
    return 0;
}

/*
 * An OVA file that other products import: a tar archive with the description
 * first (OVF 1, DSP0243), then the manifest, then a stream-optimized VMDK.
 * The machine described is one that VirtualBox and ESXi both know: an LSI
 * Logic controller, an E1000 and one disk. Properties of a hardware item stand
 * in the order of their names, as the schema of CIM wants them.
 */
#include "base/io.h"
#include "block/block_int.h"
#include "storage/disk.h"
#include "storage/import_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define TAR_BLOCK 512u
#define MAX_MEMBER_BYTES ((1ull << 36) - 1) /* twelve octal digits */
#define NAME_BYTES 80u                      /* a member's name has 100, with its ending */
#define COPY_BYTES (1u << 20)
#define DEFAULT_MEMORY_MIB 1024u

struct ova {
    const struct export_request *request;
    char ovf_name[NAME_BYTES + 16], mf_name[NAME_BYTES + 16], disk_name[NAME_BYTES + 16];
    char disk_path[PATH_MAX];
    uint64_t capacity, disk_bytes;
    char *ovf, *mf;
};

static const char ovf_text[] =
    "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
    "<Envelope ovf:version=\"1.0\" xml:lang=\"en-US\"\n"
    "    xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\"\n"
    "    xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\"\n"
    "    xmlns:rasd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/"
    "CIM_ResourceAllocationSettingData\"\n"
    "    xmlns:vssd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/"
    "CIM_VirtualSystemSettingData\">\n"
    "  <References>\n"
    "    <File ovf:id=\"file1\" ovf:href=\"%s\" ovf:size=\"%llu\"/>\n"
    "  </References>\n"
    "  <DiskSection>\n"
    "    <Info>The machine's disk</Info>\n"
    "    <Disk ovf:capacity=\"%llu\" ovf:diskId=\"disk1\" ovf:fileRef=\"file1\""
    " ovf:format=\"http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized\"/>\n"
    "  </DiskSection>\n"
    "  <NetworkSection>\n"
    "    <Info>The machine's network</Info>\n"
    "    <Network ovf:name=\"NAT\">\n"
    "      <Description>Any network with DHCP</Description>\n"
    "    </Network>\n"
    "  </NetworkSection>\n"
    "  <VirtualSystem ovf:id=\"%s\">\n"
    "    <Info>A virtual machine</Info>\n"
    "    <Name>%s</Name>\n"
    "    <OperatingSystemSection ovf:id=\"101\">\n"
    "      <Info>Linux, 64 bits</Info>\n"
    "    </OperatingSystemSection>\n"
    "    <VirtualHardwareSection>\n"
    "      <Info>What the machine has</Info>\n"
    "      <System>\n"
    "        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>\n"
    "        <vssd:InstanceID>0</vssd:InstanceID>\n"
    "        <vssd:VirtualSystemIdentifier>%s</vssd:VirtualSystemIdentifier>\n"
    "        <vssd:VirtualSystemType>vmx-07</vssd:VirtualSystemType>\n"
    "      </System>\n"
    "      <Item>\n"
    "        <rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits>\n"
    "        <rasd:Description>Number of virtual CPUs</rasd:Description>\n"
    "        <rasd:ElementName>1 virtual CPU</rasd:ElementName>\n"
    "        <rasd:InstanceID>1</rasd:InstanceID>\n"
    "        <rasd:ResourceType>3</rasd:ResourceType>\n"
    "        <rasd:VirtualQuantity>1</rasd:VirtualQuantity>\n"
    "      </Item>\n"
    "      <Item>\n"
    "        <rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>\n"
    "        <rasd:Description>Memory size</rasd:Description>\n"
    "        <rasd:ElementName>%u MB of memory</rasd:ElementName>\n"
    "        <rasd:InstanceID>2</rasd:InstanceID>\n"
    "        <rasd:ResourceType>4</rasd:ResourceType>\n"
    "        <rasd:VirtualQuantity>%u</rasd:VirtualQuantity>\n"
    "      </Item>\n"
    "      <Item>\n"
    "        <rasd:Address>0</rasd:Address>\n"
    "        <rasd:Description>SCSI controller</rasd:Description>\n"
    "        <rasd:ElementName>SCSI controller 0</rasd:ElementName>\n"
    "        <rasd:InstanceID>3</rasd:InstanceID>\n"
    "        <rasd:ResourceSubType>lsilogic</rasd:ResourceSubType>\n"
    "        <rasd:ResourceType>6</rasd:ResourceType>\n"
    "      </Item>\n"
    "      <Item>\n"
    "        <rasd:AddressOnParent>0</rasd:AddressOnParent>\n"
    "        <rasd:ElementName>Hard disk 1</rasd:ElementName>\n"
    "        <rasd:HostResource>ovf:/disk/disk1</rasd:HostResource>\n"
    "        <rasd:InstanceID>4</rasd:InstanceID>\n"
    "        <rasd:Parent>3</rasd:Parent>\n"
    "        <rasd:ResourceType>17</rasd:ResourceType>\n"
    "      </Item>\n"
    "      <Item>\n"
    "        <rasd:AddressOnParent>7</rasd:AddressOnParent>\n"
    "        <rasd:AutomaticAllocation>true</rasd:AutomaticAllocation>\n"
    "        <rasd:Connection>NAT</rasd:Connection>\n"
    "        <rasd:ElementName>Network adapter 1</rasd:ElementName>\n"
    "        <rasd:InstanceID>5</rasd:InstanceID>\n"
    "        <rasd:ResourceSubType>E1000</rasd:ResourceSubType>\n"
    "        <rasd:ResourceType>10</rasd:ResourceType>\n"
    "      </Item>\n"
    "    </VirtualHardwareSection>\n"
    "  </VirtualSystem>\n"
    "</Envelope>\n";

/* A name that needs no escapes in XML, in an archive or in a manifest. */
static int check_name(const char *name, struct err *err)
{
    size_t good = name != NULL ? strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                              "0123456789._-")
                               : 0;

    return good > 0 && name[good] == '\0' && name[0] != '.' && good <= NAME_BYTES
               ? 0
               : err_set(err, -EINVAL,
                         "the machine's name has to be 1 to %u letters, digits, dots, dashes and "
                         "underscores",
                         NAME_BYTES);
}

static int learn_capacity(struct ova *ova, struct err *err)
{
    const struct disk_ref ref = {
        .path = ova->request->path, .format = ova->request->source_format, .read_only = true};
    struct block_image *image = NULL;
    int rc = disk_open(&ref, err, &image);

    if (rc == 0) {
        ova->capacity = image->size_bytes;
        block_image_close(image);
    }
    return rc;
}

static int describe(struct ova *ova, int disk, struct err *err)
{
    const char *name = ova->request->name;
    unsigned memory = ova->request->memory_mib != 0 ? ova->request->memory_mib : DEFAULT_MEMORY_MIB;
    char ovf_digest[DIGEST_TEXT_BYTES];
    char disk_digest[DIGEST_TEXT_BYTES];
    struct digest digest;
    int rc;

    if (asprintf(&ova->ovf, ovf_text, ova->disk_name, (unsigned long long)ova->disk_bytes,
                 (unsigned long long)ova->capacity, name, name, name, memory, memory) < 0) {
        ova->ovf = NULL;
        return err_set(err, -ENOMEM, "out of memory");
    }
    rc = digest_of_text(ova->ovf, DIGEST_SHA256, &digest);
    (void)digest_format(&digest, ovf_digest);
    rc = rc < 0 ? rc : digest_of_fd(disk, 0, UINT64_MAX, DIGEST_SHA256, &digest);
    (void)digest_format(&digest, disk_digest);
    if (rc == 0 &&
        asprintf(&ova->mf, "SHA256(%s)= %s\nSHA256(%s)= %s\n", ova->ovf_name,
                 strchr(ovf_digest, ':') + 1, ova->disk_name, strchr(disk_digest, ':') + 1) < 0) {
        ova->mf = NULL;
        rc = -ENOMEM;
    }
    return rc < 0 ? err_set_errno(err, rc, "the disk's checksum cannot be made") : 0;
}

/* POSIX ustar: numbers are octal digits; the sum counts its own field as blanks. */
static int write_header(int out, const char *name, uint64_t len)
{
    char header[TAR_BLOCK] = {0};
    char number[16];
    unsigned sum = 0;

    (void)snprintf(header, 100, "%s", name);
    memcpy(header + 100, "0000644", 8);
    memcpy(header + 108, "0000000", 8);
    memcpy(header + 116, "0000000", 8);
    (void)snprintf(number, sizeof(number), "%012llo", (unsigned long long)len);
    /* Eleven digits and an end, as long as that does. */
    memcpy(header + 124, number[0] == '0' ? number + 1 : number, 12);
    (void)snprintf(number, sizeof(number), "%011llo", (unsigned long long)time(NULL));
    memcpy(header + 136, number, 12);
    memset(header + 148, ' ', 8);
    header[156] = '0';
    memcpy(header + 257, "ustar\00000", 8);
    for (unsigned i = 0; i < TAR_BLOCK; i++) {
        sum += (unsigned char)header[i];
    }
    (void)snprintf(number, sizeof(number), "%06o", sum);
    memcpy(header + 148, number, 7);
    return io_write_full(out, header, sizeof(header));
}

static int pad(int out, uint64_t len)
{
    static const char zeroes[TAR_BLOCK];

    return len % TAR_BLOCK == 0 ? 0 : io_write_full(out, zeroes, TAR_BLOCK - len % TAR_BLOCK);
}

static int write_text(int out, const char *name, const char *text)
{
    int rc = write_header(out, name, strlen(text));

    rc = rc < 0 ? rc : io_write_full(out, text, strlen(text));
    return rc < 0 ? rc : pad(out, strlen(text));
}

static int write_disk(int out, const struct ova *ova, int disk)
{
    char *buf = malloc(COPY_BYTES);
    uint64_t done = 0;
    int rc = buf != NULL ? write_header(out, ova->disk_name, ova->disk_bytes) : -ENOMEM;

    while (rc == 0 && done < ova->disk_bytes) {
        size_t some =
            ova->disk_bytes - done < COPY_BYTES ? (size_t)(ova->disk_bytes - done) : COPY_BYTES;
        ssize_t n = io_pread_full(disk, buf, some, done);

        rc = n < 0 ? (int)n : (size_t)n != some ? -EIO : io_write_full(out, buf, some);
        done += some;
    }
    free(buf);
    return rc < 0 ? rc : pad(out, ova->disk_bytes);
}

static int write_archive(const struct ova *ova, int disk, const char *making, struct err *err)
{
    static const char end[2 * TAR_BLOCK];
    CLEANUP_CLOSE int out = open(making, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    int rc = out < 0 ? -errno : write_text(out, ova->ovf_name, ova->ovf);

    rc = rc < 0 ? rc : write_text(out, ova->mf_name, ova->mf);
    rc = rc < 0 ? rc : write_disk(out, ova, disk);
    rc = rc < 0 ? rc : io_write_full(out, end, sizeof(end));
    if (rc == 0 && fsync(out) != 0) {
        rc = -errno;
    }
    return rc < 0 ? err_set_errno(err, rc, "%s cannot be written", making) : 0;
}

/* With the disk made: the rest of the archive, and its place. */
static int assemble(struct ova *ova, const char *making, struct err *err)
{
    CLEANUP_CLOSE int disk = open(ova->disk_path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    int rc;

    if (disk < 0 || fstat(disk, &st) != 0) {
        return err_set_errno(err, -errno, "%s cannot be read", ova->disk_path);
    }
    ova->disk_bytes = (uint64_t)st.st_size;
    if (ova->disk_bytes > MAX_MEMBER_BYTES) {
        return err_set(err, -EFBIG, "the packed disk is longer than an OVA can hold (64 GiB)");
    }
    rc = describe(ova, disk, err);
    rc = rc < 0 ? rc : write_archive(ova, disk, making, err);
    if (rc == 0 &&
        renameat2(AT_FDCWD, making, AT_FDCWD, ova->request->target, RENAME_NOREPLACE) != 0) {
        rc = err_set_errno(err, -errno, "%s cannot be made", ova->request->target);
    }
    return rc;
}

int export_ova(const struct export_request *request, struct err *err)
{
    struct ova ova = {.request = request};
    struct export_request disk = *request;
    char dir[PATH_MAX];
    char making[PATH_MAX + 8];
    int rc = check_name(request->name, err);

    rc = rc < 0 ? rc : learn_capacity(&ova, err);
    if (rc < 0) {
        return rc;
    }
    (void)snprintf(ova.ovf_name, sizeof(ova.ovf_name), "%s.ovf", request->name);
    (void)snprintf(ova.mf_name, sizeof(ova.mf_name), "%s.mf", request->name);
    (void)snprintf(ova.disk_name, sizeof(ova.disk_name), "%s-disk1.vmdk", request->name);
    if (access(request->target, F_OK) == 0) {
        return err_set(err, -EEXIST, "%s is there already", request->target);
    }
    if (snprintf(dir, sizeof(dir), "%s.making-XXXXXX", request->target) >= (int)sizeof(dir)) {
        return err_set(err, -ENAMETOOLONG, "%s is too long a name", request->target);
    }
    if (mkdtemp(dir) == NULL) {
        return err_set_errno(err, -errno, "nothing can be made beside %s", request->target);
    }
    (void)snprintf(making, sizeof(making), "%s/ova", dir);
    if (snprintf(ova.disk_path, sizeof(ova.disk_path), "%s/%s", dir, ova.disk_name) >=
        (int)sizeof(ova.disk_path)) {
        (void)rmdir(dir);
        return err_set(err, -ENAMETOOLONG, "%s is too long a name", request->target);
    }
    disk.format = IMPORT_VMDK;
    disk.target = ova.disk_path;
    rc = import_export_disk(&disk, err);
    rc = rc < 0 ? rc : assemble(&ova, making, err);
    (void)unlink(making);
    (void)unlink(ova.disk_path);
    (void)rmdir(dir);
    free(ova.ovf);
    free(ova.mf);
    return rc;
}

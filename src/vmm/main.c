/* corbel-vmm: runs one virtual machine until the guest powers off. */
#include "vmm/vmm.h"

int main(int argc, char **argv)
{
    return vmm_main(argc, argv);
}

/* corbeld: one daemon for a host, or for one user of it. */
#include "daemon/daemon.h"

#include <stddef.h>

int main(int argc, char **argv)
{
    (void)argc;
    return daemon_main(argv, NULL);
}

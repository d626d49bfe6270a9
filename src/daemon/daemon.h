/* corbeld, as a function. */
#ifndef CORBEL_DAEMON_DAEMON_H
#define CORBEL_DAEMON_DAEMON_H

/*
 * The whole program: its exit status. monitor is the program that runs machines where no flag and
 * no variable names one; NULL: corbel-vmm beside this program.
 */
int daemon_main(char **argv, const char *monitor);

#endif

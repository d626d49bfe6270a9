/* corbel-vmm, as a function. */
#ifndef CORBEL_VMM_VMM_H
#define CORBEL_VMM_VMM_H

/* The whole program: its exit status. */
int vmm_main(int argc, char **argv);

#endif

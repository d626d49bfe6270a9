/* Immediates of 32 bits by which a guest asks plant.c for a wrong translation of an instruction. */
#ifndef CORBEL_TESTS_PLANTED_H
#define CORBEL_TESTS_PLANTED_H

#define PLANT_VALUE 0x504c4e54 /* its lowest bit is wrong in the translation */
#define PLANT_PLACE 0x504c4e56 /* right, but the memory operand is 8 bytes too high */

#endif

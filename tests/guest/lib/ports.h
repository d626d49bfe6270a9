/* The ports of the machine that a guest ends it with (docs/memory-map.md). */
#ifndef CORBEL_TESTS_GUEST_PORTS_H
#define CORBEL_TESTS_GUEST_PORTS_H

#define PORT_DEBUG_EXIT 0xf4
#define PORT_PM1_CONTROL 0x604
#define PM1_SLP_EN 0x2000u
#ifndef PM1_SLP_TYP_S5
#define PM1_SLP_TYP_S5 (5u << 10)
#endif

#endif

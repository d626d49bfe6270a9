/*
 * Layout that hostexec.c and the template in hostexec_stub.S share: the data
 * page stands right before the code that reaches it relative to RIP.
 */
#ifndef CORBEL_ENGINE_HOSTEXEC_STUB_H
#define CORBEL_ENGINE_HOSTEXEC_STUB_H

#define HOSTEXEC_DATA_BYTES 4096
#define HOSTEXEC_GPR 0
#define HOSTEXEC_FLAGS 128
#define HOSTEXEC_TARGET 136 /* address of the copy */
#define HOSTEXEC_HOST_RSP 144
#define HOSTEXEC_XSAVE 152 /* area to load and store, or 0 */
#define HOSTEXEC_XMASK 160 /* components; 0: the CPU has FXSAVE only */
#define HOSTEXEC_HOST_MXCSR 164
#define HOSTEXEC_HOST_FCW 168

#ifndef __ASSEMBLER__
#include <stdint.h>

/* The template: entered as void (void), copies jump to `leave`, a fault before them to `abandon`. */
extern const uint8_t hostexec_stub_start[];
extern const uint8_t hostexec_stub_leave[];
extern const uint8_t hostexec_stub_abandon[];
extern const uint8_t hostexec_stub_end[];
#endif

#endif

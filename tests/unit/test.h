/*
 * What every cmocka test includes, in the order cmocka asks for.
 */
#ifndef CORBEL_TESTS_UNIT_TEST_H
#define CORBEL_TESTS_UNIT_TEST_H

#include <setjmp.h> /* NOLINT: cmocka.h needs these before it */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#endif

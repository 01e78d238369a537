/* What every header needs: fixed-width types, and the mark of functions that other libraries call. */
#ifndef LLMMEM_EXPORT_H
#define LLMMEM_EXPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIM_API __attribute__((visibility("default")))

#endif

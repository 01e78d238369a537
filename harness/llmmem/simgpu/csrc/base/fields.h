/* Settings as text: "key=value;key=value;...". */
#ifndef LLMMEM_FIELDS_H
#define LLMMEM_FIELDS_H

#include <stdbool.h>

/* Hand each "key=value" of text (with ';' between them) to set. Returns 0, or the 1-based number of the
 * first that set does not take. */
int sim_read_fields(const char *text, bool (*set)(const char *key, const char *value));

#endif

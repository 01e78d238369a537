/* Settings as text: "key=value;key=value;...". */
#ifndef LLMMEM_FIELDS_H
#define LLMMEM_FIELDS_H

#include <stdbool.h>

/* Call set for each "key=value" of text. Returns 0, or the 1-based number of the first field for which set
 * returned false. */
int sim_read_fields(const char *text, bool (*set)(const char *key, const char *value));

#endif

#include "base/fields.h"


#include <string.h>

int sim_read_fields(const char *text, bool (*set)(const char *key, const char *value)) {
    char field[256];
    int number = 0;
    while (*text) {
        size_t length = strcspn(text, ";");
        number++;
        if (length >= sizeof field) return number;
        memcpy(field, text, length);
        field[length] = 0;
        char *equals = strchr(field, '=');
        if (!equals) return number;
        *equals = 0;
        if (!set(field, equals + 1)) return number;
        text += length + (text[length] == ';');
    }
    return 0;
}

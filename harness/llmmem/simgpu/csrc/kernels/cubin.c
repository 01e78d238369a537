#include "kernels/cubin.h"


#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A cubin is an ELF file. Its sections ".nv.info" (of all kernels) and ".nv.info.NAME" are lists of
 * attributes: format, name, and two bytes that are the value, or the length of the value that
 * follows. NVIDIA names them in what `cuobjdump -elf` prints (EIATTR_...). */
typedef struct {
    uint8_t format, name;
    uint16_t length;
} attribute;

#define FORMAT_WITH_VALUE 4 /* EIFMT_SVAL */
#define REQUIRED_THREADS 0x10 /* EIATTR_REQNTID: three numbers */
#define MAX_THREADS 0x05      /* EIATTR_MAX_THREADS: likewise */
#define FRAME_SIZE 0x11       /* EIATTR_FRAME_SIZE: symbol, bytes */
#define PARAMETER 0x17        /* EIATTR_KPARAM_INFO */
#define REGISTERS 0x2F        /* EIATTR_REGCOUNT: symbol, number */

typedef struct {
    uint32_t index;
    uint16_t ordinal, offset;
    uint32_t packed; /* the upper 14 bits are the size */
} parameter;

#define SIZE_SHIFT 18

typedef struct {
    const char *base;
    const Elf64_Shdr *sections;
    size_t count;
    const char *names;
} elf;

static elf open_elf(const void *image) {
    const Elf64_Ehdr *header = image;
    const char *base = image;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(base + header->e_shoff);
    return (elf){
        .base = base,
        .sections = sections,
        .count = header->e_shnum,
        .names = base + sections[header->e_shstrndx].sh_offset,
    };
}

static const Elf64_Shdr *section(const elf *e, const char *name) {
    for (size_t i = 0; i < e->count; i++)
        if (!strcmp(e->names + e->sections[i].sh_name, name)) return &e->sections[i];
    return NULL;
}

/* The index of a symbol, or 0. */
static uint32_t symbol(const elf *e, const char *name) {
    const Elf64_Shdr *table = section(e, ".symtab");
    if (!table) return 0;
    const Elf64_Sym *symbols = (const Elf64_Sym *)(e->base + table->sh_offset);
    const char *names = e->base + e->sections[table->sh_link].sh_offset;
    for (uint32_t i = 1; i < table->sh_size / sizeof *symbols; i++)
        if (!strcmp(names + symbols[i].st_name, name)) return i;
    return 0;
}

/* Call `take` for each attribute that is followed by a value. */
static void each_attribute(const elf *e, const Elf64_Shdr *info, void (*take)(sim_cubin *, uint32_t, int, const void *),
                           sim_cubin *cubin, uint32_t kernel) {
    const char *at = e->base + info->sh_offset, *end = at + info->sh_size;
    while (at + sizeof(attribute) <= end) {
        attribute a;
        memcpy(&a, at, sizeof a);
        at += sizeof a;
        if (a.format != FORMAT_WITH_VALUE) continue;
        take(cubin, kernel, a.name, at);
        at += a.length;
    }
}

static void of_all_kernels(sim_cubin *cubin, uint32_t kernel, int name, const void *value) {
    uint32_t pair[2]; /* symbol, number */
    if (name != REGISTERS && name != FRAME_SIZE) return;
    memcpy(pair, value, sizeof pair);
    if (pair[0] != kernel) return;
    if (name == REGISTERS)
        cubin->registers = (int)pair[1];
    else
        cubin->local_bytes = (int)pair[1];
}

static void of_this_kernel(sim_cubin *cubin, uint32_t kernel, int name, const void *value) {
    (void)kernel;
    if (name == PARAMETER) {
        parameter p;
        memcpy(&p, value, sizeof p);
        if (p.ordinal < cubin->parameter_count) cubin->parameter_sizes[p.ordinal] = (uint16_t)(p.packed >> SIZE_SHIFT);
    } else if (name == REQUIRED_THREADS || name == MAX_THREADS) {
        uint32_t dimensions[3];
        memcpy(dimensions, value, sizeof dimensions);
        cubin->max_threads = (int)(dimensions[0] * dimensions[1] * dimensions[2]);
    }
}

static void count_parameters(sim_cubin *cubin, uint32_t kernel, int name, const void *value) {
    (void)kernel;
    (void)value;
    if (name == PARAMETER) cubin->parameter_count++;
}

void *sim_copy_cubin(const void *image) {
    const Elf64_Ehdr *header = image;
    if (!image || memcmp(image, ELFMAG, SELFMAG) || header->e_ident[EI_CLASS] != ELFCLASS64) return NULL;
    elf e = open_elf(image);
    size_t size = header->e_shoff + e.count * sizeof *e.sections;
    for (size_t i = 0; i < e.count; i++) {
        size_t end = e.sections[i].sh_offset + e.sections[i].sh_size;
        if (e.sections[i].sh_type != SHT_NOBITS && end > size) size = end;
    }
    void *copy = malloc(size);
    return copy ? memcpy(copy, image, size) : NULL;
}

sim_cubin *sim_read_cubin(const void *copy, const char *kernel) {
    char name[1024];
    snprintf(name, sizeof name, ".nv.info.%s", kernel);
    elf e = open_elf(copy);
    uint32_t index = symbol(&e, kernel);
    const Elf64_Shdr *all = section(&e, ".nv.info"), *own = section(&e, name);
    if (!index || !all || !own) return NULL;
    sim_cubin counted = {0};
    each_attribute(&e, own, count_parameters, &counted, index);
    sim_cubin *cubin = calloc(1, sizeof *cubin + counted.parameter_count * sizeof *cubin->parameter_sizes);
    if (!cubin) return NULL;
    cubin->max_threads = 1024;
    cubin->parameter_count = counted.parameter_count;
    each_attribute(&e, all, of_all_kernels, cubin, index);
    each_attribute(&e, own, of_this_kernel, cubin, index);
    return cubin;
}

/*
 * Calls as bytes choose them: see calls.h.
 *
 * With clang's libFuzzer (-fsanitize=fuzzer,address) coverage steers the bytes. With any other compiler, and -DREPLAY, this
 * is a program that plays the files of a corpus, and then changed copies of them: `fuzz CORPUS [SECONDS [SEED]]`.
 */
#define _POSIX_C_SOURCE 200809L
#include "../tests/calls.h"
#include <dirent.h>
#include <time.h>

struct chooser {
    const uint8_t *data;
    size_t left;
};

/* One byte for most choices; when there are no more, always 0. */
static uint32_t next(struct chooser *chooser)
{
    if (!chooser->left)
        return 0;
    chooser->left--;
    return *chooser->data++;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct chooser chooser;
    chooser.data = data;
    chooser.left = size;
    while (chooser.left)
        one_call(&chooser);
    free_all();
    return 0;
}

#ifdef REPLAY

enum { MOST = 4096, INPUT = 512 };

static struct input {
    uint8_t data[INPUT];
    size_t size;
} corpus[MOST];

static uint32_t draw(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33);
}

static size_t read_corpus(const char *path)
{
    size_t count = 0;
    DIR *directory = opendir(path);
    struct dirent *entry;
    CHECK(directory);
    while (count < MOST && (entry = readdir(directory))) {
        char name[1024];
        FILE *file;
        if (entry->d_name[0] == '.')
            continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        CHECK((file = fopen(name, "rb")) != NULL);
        corpus[count].size = fread(corpus[count].data, 1, INPUT, file);
        count += corpus[count].size > 0;
        fclose(file);
    }
    closedir(directory);
    return count;
}

/* The head of one input and the tail of another, with some bytes changed. */
static struct input mix(uint64_t *state, size_t count)
{
    struct input made = corpus[draw(state) % count];
    const struct input *other = &corpus[draw(state) % count];
    size_t cut = draw(state) % made.size, changes = draw(state) % 8;
    while (made.size > cut && cut < other->size) {
        made.data[cut] = other->data[cut];
        cut++;
    }
    while (changes--)
        made.data[draw(state) % made.size] = (uint8_t)draw(state);
    return made;
}

int main(int argc, char **argv)
{
    long seconds = argc > 2 ? strtol(argv[2], NULL, 10) : 0;
    uint64_t state = argc > 3 ? strtoull(argv[3], NULL, 10) : (uint64_t)time(NULL);
    unsigned long inputs = 0;
    size_t count, i;
    time_t end;
    CHECK(argc > 1);
    count = read_corpus(argv[1]);
    CHECK(count >= 10);
    alarm((unsigned)seconds + 120);
    fprintf(stderr, "seed %llu\n", (unsigned long long)state);
    for (i = 0; i < count; i++)
        LLVMFuzzerTestOneInput(corpus[i].data, corpus[i].size);
    for (end = time(NULL) + seconds; time(NULL) < end; inputs++) {
        struct input made = mix(&state, count);
        LLVMFuzzerTestOneInput(made.data, made.size);
    }
    CHECK_OK(polylock_set_log(POLYLOCK_LOG_OFF, NULL, NULL, NULL, NULL));
    CHECK_OK(polylock_shutdown(20000));
    fprintf(stderr, "%lu of the corpus, %lu changed\n", (unsigned long)count, inputs);
    printf("fuzz: 1 passed, 0 failed\n");
    return 0;
}

#endif

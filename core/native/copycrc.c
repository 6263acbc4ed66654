/* Copy and checksum in one pass over memory: the inner loop of capture, verification and restore.
 *
 * CRC-32 (IEEE, as in zlib). On x86-64 by carry-less multiplication after V. Gopal et al., "Fast CRC Computation for Generic
 * Polynomials Using PCLMULQDQ Instruction" (Intel, 2009), 256 bytes a round with AVX-512; on Arm by the CRC32 instructions;
 * elsewhere by tables. Large copies use stores that bypass the cache: the destination is not read again by this core, and not
 * fetching its lines first is what makes this faster than memcpy.
 *
 * No dependency beyond libc's memcpy, so that one build serves every image of its architecture. The Python side is
 * holdfast_core/fastcopy.py; without this library everything works through zlib, slower.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define POLY 0xEDB88320u
#define STREAM_FROM (1u << 18) /* bytes; below this the destination may well be wanted in the cache */

static uint32_t table[8][256];

__attribute__((constructor)) static void make_tables(void) {
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; bit++) c = (c >> 1) ^ ((c & 1) ? POLY : 0);
    table[0][i] = c;
  }
  for (uint32_t i = 0; i < 256; i++)
    for (int k = 1; k < 8; k++) table[k][i] = (table[k - 1][i] >> 8) ^ table[0][table[k - 1][i] & 0xff];
}

/* Eight bytes a round through tables; `c` is the inner (inverted) state. */
static uint32_t crc_tables(uint32_t c, const uint8_t *s, size_t n) {
  for (; n >= 8; n -= 8, s += 8) {
    uint64_t w;
    memcpy(&w, s, 8);
    w ^= c;
    c = table[7][w & 0xff] ^ table[6][(w >> 8) & 0xff] ^ table[5][(w >> 16) & 0xff] ^ table[4][(w >> 24) & 0xff] ^
        table[3][(w >> 32) & 0xff] ^ table[2][(w >> 40) & 0xff] ^ table[1][(w >> 48) & 0xff] ^ table[0][w >> 56];
  }
  while (n--) c = table[0][(c ^ *s++) & 0xff] ^ (c >> 8);
  return c;
}

#if defined(__x86_64__)
#include <immintrin.h>

/* x^n mod P, bit-reflected: the constants of the folding. */
static uint64_t x_power(unsigned n) {
  uint32_t r = 0x80000000u;
  while (n--) r = (r >> 1) ^ ((r & 1) ? POLY : 0);
  return (uint64_t)r << 1;
}

static uint64_t fold128_lo, fold128_hi, fold512_lo, fold512_hi, fold2048_lo, fold2048_hi;

__attribute__((constructor)) static void make_constants(void) {
  fold128_lo = x_power(128 + 32), fold128_hi = x_power(128 - 32);
  fold512_lo = x_power(512 + 32), fold512_hi = x_power(512 - 32);
  fold2048_lo = x_power(2048 + 32), fold2048_hi = x_power(2048 - 32);
}

#define AVX __attribute__((target("avx512f,avx512vl,avx512bw,vpclmulqdq,pclmul,sse4.1")))
#define SSE __attribute__((target("pclmul,sse4.1")))

AVX static inline __m512i fold_wide(__m512i x, __m512i k, __m512i next) {
  return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(x, k, 0x00), _mm512_clmulepi64_epi128(x, k, 0x11), next, 0x96);
}

AVX static inline void put_wide(uint8_t *d, __m512i v, int stream) {
  if (stream)
    _mm512_stream_si512((void *)d, v);
  else
    _mm512_storeu_si512((void *)d, v);
}

/* n >= 256; `d` may be NULL (checksum only). Consumes whole rounds of 256 bytes and says how many bytes. */
AVX static size_t rounds_avx512(uint32_t *crc, uint8_t *d, const uint8_t *s, size_t n, int stream) {
  const __m512i k = _mm512_broadcast_i32x4(_mm_set_epi64x((long long)fold2048_hi, (long long)fold2048_lo));
  __m512i x[4];
  size_t at = 0;
  for (int j = 0; j < 4; j++) x[j] = _mm512_loadu_si512(s + 64 * j);
  if (d)
    for (int j = 0; j < 4; j++) put_wide(d + 64 * j, x[j], stream);
  x[0] = _mm512_xor_si512(x[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)*crc)));
  for (at = 256; at + 256 <= n; at += 256) {
    for (int j = 0; j < 4; j++) {
      _mm_prefetch((const char *)s + at + 1024 + 64 * j, _MM_HINT_T0);
      __m512i next = _mm512_loadu_si512(s + at + 64 * j);
      if (d) put_wide(d + at + 64 * j, next, stream);
      x[j] = fold_wide(x[j], k, next);
    }
  }
  if (stream) _mm_sfence();
  uint8_t rest[256];
  for (int j = 0; j < 4; j++) _mm512_storeu_si512(rest + 64 * j, x[j]);
  *crc = crc_tables(0, rest, sizeof rest);
  return at;
}

SSE static inline __m128i fold_narrow(__m128i x, __m128i k, __m128i next) {
  return _mm_xor_si128(next, _mm_xor_si128(_mm_clmulepi64_si128(x, k, 0x00), _mm_clmulepi64_si128(x, k, 0x11)));
}

/* The same with 128-bit registers: 64 bytes a round, n >= 64. */
SSE static size_t rounds_sse(uint32_t *crc, uint8_t *d, const uint8_t *s, size_t n, int stream) {
  const __m128i k = _mm_set_epi64x((long long)fold512_hi, (long long)fold512_lo);
  __m128i x[4];
  size_t at = 0;
  for (int j = 0; j < 4; j++) x[j] = _mm_loadu_si128((const __m128i *)(s + 16 * j));
  if (d)
    for (int j = 0; j < 4; j++) _mm_storeu_si128((__m128i *)(d + 16 * j), x[j]);
  x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128((int)*crc));
  for (at = 64; at + 64 <= n; at += 64) {
    for (int j = 0; j < 4; j++) {
      __m128i next = _mm_loadu_si128((const __m128i *)(s + at + 16 * j));
      if (d && stream)
        _mm_stream_si128((__m128i *)(d + at + 16 * j), next);
      else if (d)
        _mm_storeu_si128((__m128i *)(d + at + 16 * j), next);
      x[j] = fold_narrow(x[j], k, next);
    }
  }
  if (stream) _mm_sfence();
  uint8_t rest[64];
  for (int j = 0; j < 4; j++) _mm_storeu_si128((__m128i *)(rest + 16 * j), x[j]);
  *crc = crc_tables(0, rest, sizeof rest);
  return at;
}

static int detect(void) {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return 2;
  return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
}

static size_t rounds(int level, uint32_t *crc, uint8_t *d, const uint8_t *s, size_t n) {
  int stream = d && n >= STREAM_FROM && ((uintptr_t)d & 63) == 0;
  if (level >= 2 && n >= 256) return rounds_avx512(crc, d, s, n, stream);
  if (level >= 1 && n >= 64) return rounds_sse(crc, d, s, n, stream);
  return 0;
}

#elif defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>

#define HWCAP_CRC32_BIT (1u << 7)

static int detect(void) { return (getauxval(AT_HWCAP) & HWCAP_CRC32_BIT) != 0; }

__attribute__((target("+crc"))) static size_t rounds(int level, uint32_t *crc, uint8_t *d, const uint8_t *s, size_t n) {
  if (!level) return 0;
  uint32_t c = *crc;
  size_t at = 0;
  for (; at + 8 <= n; at += 8) {
    uint64_t w;
    memcpy(&w, s + at, 8);
    if (d) memcpy(d + at, &w, 8);
    c = __crc32d(c, w);
  }
  *crc = c;
  return at;
}

#else
static int detect(void) { return 0; }
static size_t rounds(int level, uint32_t *crc, uint8_t *d, const uint8_t *s, size_t n) {
  (void)level, (void)crc, (void)d, (void)s, (void)n;
  return 0;
}
#endif

static int best = -1;

/* 0: tables only, 1: 128-bit folding or Arm's instructions, 2: AVX-512. */
int holdfast_level(void) {
  if (best < 0) best = detect();
  return best;
}

/* Lower the level, for tests of the other paths. */
void holdfast_set_level(int level) {
  int most = detect();
  best = level < most ? level : most;
}

/* CRC-32 of n bytes, continued from `crc` (0 at first); copies them to `dst` as well unless that is NULL. */
uint32_t holdfast_copy_crc32(void *dst, const void *src, size_t n, uint32_t crc) {
  uint32_t c = ~crc;
  uint8_t *d = dst;
  const uint8_t *s = src;
  size_t done = rounds(holdfast_level(), &c, d, s, n);
  if (d && done < n) memcpy(d + done, s + done, n - done);
  return ~crc_tables(c, s + done, n - done);
}

/* One copy of a batch: `to` is an offset from the batch's base; `from` NULL: only sum up what stands there. The checksum goes to
 * `sums[sum]`. */
struct holdfast_copy {
  uint64_t to;
  const uint8_t *from;
  uint64_t n;
  uint64_t sum;
};

/* Work off a batch together with any other thread that calls this on the same batch: each claims the next copy by `*next`.
 * Fills in the checksum, then sets `done[i]`. A nonzero `*stop` ends it early. Returns how many copies this call made. */
uint64_t holdfast_batch(const struct holdfast_copy *work, uint64_t count, uint8_t *base, uint32_t *sums, uint8_t *done,
                        uint64_t *next, const volatile uint32_t *stop) {
  uint64_t made = 0;
  while (!*stop) {
    uint64_t i = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
    if (i >= count) break;
    uint8_t *to = base + work[i].to;
    const uint8_t *from = work[i].from;
    sums[work[i].sum] = holdfast_copy_crc32(from ? to : NULL, from ? from : to, work[i].n, 0);
    __atomic_store_n(&done[i], 1, __ATOMIC_RELEASE);
    made++;
  }
  return made;
}

/* The same with its arguments in memory, in their order: for libraries that call a function in each thread of a team. */
void holdfast_batch_team(const uint64_t *a) {
  holdfast_batch((const struct holdfast_copy *)(uintptr_t)a[0], a[1], (uint8_t *)(uintptr_t)a[2], (uint32_t *)(uintptr_t)a[3],
                 (uint8_t *)(uintptr_t)a[4], (uint64_t *)(uintptr_t)a[5], (const volatile uint32_t *)(uintptr_t)a[6]);
}

/* Bring objects into the cache before somebody visits them one by one: up to three lines from each address on, none of them on
 * another page. Loads that do not wait for one another; prefetch instructions were dropped where a page walk was due. */
uint64_t holdfast_touch(const uintptr_t *objects, uint64_t count) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < count; i++)
    for (uintptr_t at = objects[i], end = (at | 4095) + 1; at < end && at < objects[i] + 192; at += 64)
      sum += *(const volatile uint8_t *)at;
  return sum;
}

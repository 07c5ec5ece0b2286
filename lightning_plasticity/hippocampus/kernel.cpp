// One model with one agent over many steps, learning included: see dynamics.py and plasticity.py, which it must equal.
//
// What makes it fast: where delta is exactly zero (the soma follows this dendrite, or the cell is below threshold) the
// rule only lets the induction decay. That decay is kept as two numbers a cell until the cell learns again:
//     weight in force = weight + ahead * induction,   induction in force = left * induction.
// So most cells' synapses are read and not written in most steps.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

// Inductions decay towards zero, where denormal numbers would be a hundred times slower.
class FlushDenormals {
#if defined(__SSE2__)
    unsigned int before_ = _mm_getcsr();

   public:
    FlushDenormals() { _mm_setcsr(before_ | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before_); }
#endif
};

template <typename Real>
struct Map {  // mirrored in native.py, as is Network
    Real *weight, *induction;
    int64_t cells, inputs;  // inputs with the bias, if there is one
    double eta, trace_rate, l1, l2, scale;
};

template <typename Real>
struct Network {
    Map<Real> hpc_apical, mec_basal, recurrent, right, left;
    int64_t hpc, mec, conjunctive, steps, retanh, lag;
    double threshold, noise_decay, noise_jump, noise_jump_mec_apical;
    Real *p, *g, *c, *u, *noise;                    // the state, changed in place
    const Real *features, *speed, *sleep, *normal;  // speed and normal may be null
    int64_t features_stride, speed_stride, normal_stride;
    Real *trace_p, *trace_g, *trace_error;
    int64_t trace_p_stride, trace_g_stride, trace_error_stride;
};

template <typename Real>
Real sign(Real x) { return Real((x > 0) - (x < 0)); }

// Numbers in whole vector registers, zeros behind the last, so that no loop has a rest.
template <typename Real>
class Padded {
    static constexpr int64_t kLanes = 32 / sizeof(Real);
    struct alignas(32) Block { Real lane[kLanes] = {}; };
    std::vector<Block> blocks_;

   public:
    static int64_t up(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }
    explicit Padded(int64_t count) : blocks_(up(count) / kLanes) {}
    Real *data() { return blocks_.data()->lane; }
    const Real *data() const { return blocks_.data()->lane; }
    Real &operator[](int64_t i) { return data()[i]; }
};

// A map at work, as lines of synapses that share a cell or, `by_input`, an input: the latter for a map whose inputs
// are mostly silent, as the line of a silent input neither adds to a product nor learns.
template <typename Real>
class Synapses {
    const Map<Real> map_;
    const bool by_input_, decays_;
    const int64_t lines_, length_, stride_;
    Padded<Real> weight_, induction_;
    std::vector<double> ahead_, left_;  // of each line
    const double keep_;

   public:
    Synapses(const Map<Real> &map, bool by_input)
        : map_(map), by_input_(by_input), decays_(map.l1 != 0 || map.l2 != 0),
          lines_(by_input ? map.inputs : map.cells), length_(by_input ? map.cells : map.inputs),
          stride_(Padded<Real>::up(length_)), weight_(lines_ * stride_), induction_(lines_ * stride_),
          ahead_(lines_, 0.0), left_(lines_, 1.0), keep_(1 - map.trace_rate) {
        for (int64_t i = 0; i < lines_; ++i) {
            copy_line(map_.weight, i, weight_.data(), false);
            if (map_.eta != 0) copy_line(map_.induction, i, induction_.data(), false);
        }
    }

    // y += W x; both are Padded
    void add_product(const Real *x, Real *y) const {
        if (by_input_) {
            for (int64_t j = 0; j < lines_; ++j)
                if (x[j] != 0) add_input(j, x[j], y);
            return;
        }
        int64_t i = 0;
        for (; i + 4 <= lines_; i += 4) add_cells<4>(i, x, y);  // four sums that don't wait for each other
        for (; i < lines_; ++i) add_cells<1>(i, x, y);
    }

    // One step of the rule. `driven`: the soma followed this dendrite, so that every delta is zero.
    void learn(const Real *delta, const Real *x, bool driven) {
        if (map_.eta == 0) return;
        const Real *own = by_input_ ? x : delta, *along = by_input_ ? delta : x;
        for (int64_t i = 0; i < lines_; ++i) {
            if (decays_) {
                learn_with_decay(i, own[i], along);
            } else if (driven || own[i] == 0) {
                left_[i] *= keep_;
                ahead_[i] += map_.eta * left_[i];
            } else {
                learn_line(i, own[i], along);
            }
        }
    }

    // Leaves weight and induction as the rule has them.
    void finish() {
        if (map_.eta == 0) return;
        for (int64_t i = 0; i < lines_; ++i) {
            for (int64_t k = i * stride_; k < (i + 1) * stride_; ++k) {
                weight_[k] += Real(ahead_[i]) * induction_[k];
                induction_[k] *= Real(left_[i]);
            }
            copy_line(map_.weight, i, weight_.data(), true);
            copy_line(map_.induction, i, induction_.data(), true);
        }
    }

   private:
    void copy_line(Real *given, int64_t line, Real *lines, bool back) const {
        Real *mine = lines + line * stride_;
        given += by_input_ ? line : line * length_;
        if (!by_input_) return (void)(back ? std::copy(mine, mine + length_, given) : std::copy(given, given + length_, mine));
        for (int64_t k = 0; k < length_; ++k) back ? given[k * lines_] = mine[k] : mine[k] = given[k * lines_];
    }

    template <int64_t cells>
    void add_cells(int64_t first, const Real *__restrict x, Real *__restrict y) const {
        const Real *__restrict weight = weight_.data() + first * stride_;
        const Real *__restrict induction = induction_.data() + first * stride_;
        Real sum[cells] = {}, ahead[cells];
        bool deferred = false;
        for (int64_t i = 0; i < cells; ++i) {
            ahead[i] = ahead_[first + i];
            deferred = deferred || ahead[i] != 0;
        }
        if (deferred) {
            for (int64_t j = 0; j < stride_; ++j)
                for (int64_t i = 0; i < cells; ++i)
                    sum[i] += (weight[i * stride_ + j] + ahead[i] * induction[i * stride_ + j]) * x[j];
        } else {
            for (int64_t j = 0; j < stride_; ++j)
                for (int64_t i = 0; i < cells; ++i) sum[i] += weight[i * stride_ + j] * x[j];
        }
        for (int64_t i = 0; i < cells; ++i) y[first + i] += sum[i];
    }

    void add_input(int64_t input, Real x, Real *__restrict y) const {
        const Real *__restrict weight = weight_.data() + input * stride_;
        const Real *__restrict induction = induction_.data() + input * stride_;
        const Real ahead = ahead_[input];
        for (int64_t i = 0; i < stride_; ++i) y[i] += (weight[i] + ahead * induction[i]) * x;
    }

    void learn_line(int64_t line, Real own, const Real *__restrict along) {
        Real *__restrict weight = weight_.data() + line * stride_;
        Real *__restrict induction = induction_.data() + line * stride_;
        const Real drive = Real(map_.trace_rate * map_.scale) * own;
        const Real h = keep_ * left_[line], ahead = ahead_[line], eta = map_.eta;
        for (int64_t k = 0; k < stride_; ++k) {
            const Real before = induction[k], after = h * before + drive * along[k];
            induction[k] = after;
            weight[k] += ahead * before + eta * after;
        }
        ahead_[line] = 0, left_[line] = 1;
    }

    void learn_with_decay(int64_t line, Real own, const Real *along) {
        const Real drive = Real(map_.trace_rate * map_.scale) * own;
        for (int64_t j = 0, k = line * stride_; j < length_; ++j, ++k) {
            Real &weight = weight_[k], &induction = induction_[k];
            induction = Real(keep_) * induction + drive * along[j];
            weight += Real(map_.eta) * (induction - Real(map_.l2) * weight - Real(map_.l1) * sign(weight));
        }
    }
};

// tanh without branches, so that it is computed for many cells at once; to the last digits of a float.
inline float fast_tanh(float v) {
    const float x = 0.25f * std::min(std::max(v, -9.0f), 9.0f), y = x * x;
    float t = x * (135135 + y * (17325 + y * (378 + y))) / (135135 + y * (62370 + y * (3150 + y * 28)));  // Pade
    t = 2 * t / (1 + t * t);  // tanh 2x of tanh x, twice
    return 2 * t / (1 + t * t);
}
inline double fast_tanh(double v) { return std::tanh(v); }

// Rates of dendrites in place of their potentials, and f'.
template <typename Real>
void activate(bool retanh, int64_t cells, Real *__restrict v, Real *__restrict slope) {
    if (!retanh) return (void)std::fill(slope, slope + cells, Real(1));
    for (int64_t i = 0; i < cells; ++i) {
        const Real rate = fast_tanh(std::max(v[i], Real(0)));
        slope[i] = v[i] > 0 ? 1 - rate * rate : Real(0);
        v[i] = rate;
    }
}

// Somas and the two postsynaptic differences of a layer; the mean of |basal - apical|.
template <typename Real>
Real gate(int64_t cells, Real sleep, const Real *apical, const Real *basal, Real *soma, Real *d_apical, Real *d_basal) {
    Real error = 0;
    for (int64_t i = 0; i < cells; ++i) {
        soma[i] = sleep == 0 ? basal[i] : sleep == 1 ? apical[i] : sleep * apical[i] + (1 - sleep) * basal[i];
        d_apical[i] = soma[i] - apical[i];
        d_basal[i] = soma[i] - basal[i];
        error += std::abs(basal[i] - apical[i]);
    }
    return error / cells;
}

template <typename Real>
void run(Network<Real> &net) {
    const FlushDenormals flush;
    const int64_t n_p = net.hpc, n_g = net.mec;
    // p and g as their own maps see them, and with a 1 behind the last where a map has a bias
    Padded<Real> p(n_p + 1), g(n_g), g_below(n_g + 1), right_c(n_g), left_c(n_g);
    Padded<Real> pa(n_p), pb(n_p), ga(n_g), gb(n_g), slope_a(n_g), slope_b(n_g);
    Padded<Real> delta_p(n_p), unused(n_p), delta_a(n_g), delta_b(n_g);
    Synapses<Real> hpc_apical(net.hpc_apical, false), mec_basal(net.mec_basal, false);
    Synapses<Real> recurrent(net.recurrent, false), right(net.right, true), left(net.left, true);
    if (net.mec_basal.inputs > n_p) p[n_p] = 1;
    if (net.hpc_apical.inputs > n_g) g_below[n_g] = 1;
    std::copy(net.g, net.g + n_g, g.data());
    if (net.conjunctive) {
        std::copy(net.c, net.c + n_g, right_c.data());
        std::copy(net.c + n_g, net.c + 2 * n_g, left_c.data());
    }
    Real *n_pa = net.noise, *n_pb = n_pa + n_p, *n_ga = n_pb + n_p, *n_gb = n_ga + n_g;
    for (int64_t t = 0; t < net.steps; ++t) {
        const Real *features = net.features + t * net.features_stride;
        const Real sleep_p = net.sleep[2 * t], sleep_g = net.sleep[2 * t + 1];
        const bool noisy = net.normal != nullptr;
        if (noisy) {
            const Real *normal = net.normal + t * net.normal_stride;
            const Real decay = net.noise_decay, jump = net.noise_jump, jump_ga = net.noise_jump_mec_apical;
            for (int64_t i = 0; i < 2 * n_p; ++i) n_pa[i] = n_pa[i] * decay + jump * normal[i];
            for (int64_t i = 0; i < n_g; ++i) n_ga[i] = n_ga[i] * decay + jump_ga * normal[2 * n_p + i];
            for (int64_t i = 0; i < n_g; ++i) n_gb[i] = n_gb[i] * decay + jump * normal[2 * n_p + n_g + i];
        }
        const Real loud = noisy ? 1 : 0;

        std::copy(g.data(), g.data() + n_g, g_below.data());
        for (int64_t i = 0; i < n_p; ++i) {
            pa[i] = loud * n_pa[i];
            pb[i] = features[i] + loud * n_pb[i];
        }
        hpc_apical.add_product(g_below.data(), pa.data());
        const Real error_p = gate(n_p, sleep_p, pa.data(), pb.data(), p.data(), delta_p.data(), unused.data());
        hpc_apical.learn(delta_p.data(), g_below.data(), sleep_p == 1);

        std::fill(ga.data(), ga.data() + n_g, Real(0));
        std::fill(gb.data(), gb.data() + n_g, Real(0));
        mec_basal.add_product(p.data(), gb.data());
        recurrent.add_product(g.data(), ga.data());
        right.add_product(right_c.data(), ga.data());
        left.add_product(left_c.data(), ga.data());
        activate(net.retanh, n_g, gb.data(), slope_b.data());
        activate(net.retanh, n_g, ga.data(), slope_a.data());
        for (int64_t i = 0; i < n_g; ++i) {
            ga[i] += loud * n_ga[i];
            gb[i] += loud * n_gb[i];
        }
        const Real error_g = gate(n_g, sleep_g, ga.data(), gb.data(), net.g, delta_a.data(), delta_b.data());
        for (int64_t i = 0; i < n_g; ++i) {
            delta_a[i] *= slope_a[i];
            delta_b[i] *= slope_b[i];
        }
        mec_basal.learn(delta_b.data(), p.data(), sleep_g == 0);
        recurrent.learn(delta_a.data(), g.data(), sleep_g == 1);
        right.learn(delta_a.data(), right_c.data(), sleep_g == 1);
        left.learn(delta_a.data(), left_c.data(), sleep_g == 1);
        if (net.conjunctive) {
            const Real speed = net.speed[t * net.speed_stride], felt = net.lag ? *net.u : speed;
            const Real threshold = net.threshold;
            for (int64_t i = 0; i < n_g; ++i) {
                right_c[i] = std::max(net.g[i] + felt - threshold, Real(0));
                left_c[i] = std::max(net.g[i] - felt - threshold, Real(0));
            }
            *net.u = speed;
        }
        std::copy(net.g, net.g + n_g, g.data());
        std::copy(p.data(), p.data() + n_p, net.trace_p + t * net.trace_p_stride);
        std::copy(net.g, net.g + n_g, net.trace_g + t * net.trace_g_stride);
        net.trace_error[t * net.trace_error_stride] = error_p;
        net.trace_error[t * net.trace_error_stride + 1] = error_g;
    }
    std::copy(p.data(), p.data() + n_p, net.p);
    if (net.conjunctive) {
        std::copy(right_c.data(), right_c.data() + n_g, net.c);
        std::copy(left_c.data(), left_c.data() + n_g, net.c + n_g);
    }
    for (Synapses<Real> *map : {&hpc_apical, &mec_basal, &recurrent, &right, &left}) map->finish();
}

}  // namespace

extern "C" void hippocampus_float32(void *net) { run(*static_cast<Network<float> *>(net)); }
extern "C" void hippocampus_float64(void *net) { run(*static_cast<Network<double> *>(net)); }

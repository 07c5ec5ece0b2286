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

// A map at work.
template <typename Real>
class Synapses {
    Map<Real> &map_;
    std::vector<double> ahead_, left_;  // of each cell
    const double keep_;
    const bool decays_;

   public:
    explicit Synapses(Map<Real> &map)
        : map_(map), ahead_(map.cells, 0.0), left_(map.cells, 1.0), keep_(1 - map.trace_rate),
          decays_(map.l1 != 0 || map.l2 != 0) {}

    // y += W x
    void add_product(const Real *x, Real *y) const {
        if (std::all_of(x, x + map_.inputs, [](Real rate) { return rate == 0; })) return;
        int64_t i = 0;
        for (; i + 4 <= map_.cells; i += 4) add_rows<4>(i, x, y);  // four sums that don't wait for each other
        for (; i < map_.cells; ++i) add_rows<1>(i, x, y);
    }

    // One step of the rule. `driven`: the soma followed this dendrite, so that every delta is zero.
    void learn(const Real *delta, const Real *x, bool driven) {
        if (map_.eta == 0) return;
        if (decays_) return learn_with_decay(delta, x);
        driven = driven || std::all_of(x, x + map_.inputs, [](Real rate) { return rate == 0; });
        for (int64_t i = 0; i < map_.cells; ++i) {
            if (driven || delta[i] == 0) {
                left_[i] *= keep_;
                ahead_[i] += map_.eta * left_[i];
            } else {
                learn_row(i, Real(map_.trace_rate * map_.scale) * delta[i], x);
            }
        }
    }

    // Leaves weight and induction as the rule has them.
    void finish() {
        for (int64_t i = 0; i < map_.cells; ++i) {
            if (ahead_[i] == 0) continue;
            for (int64_t k = i * map_.inputs; k < (i + 1) * map_.inputs; ++k) {
                map_.weight[k] += Real(ahead_[i]) * map_.induction[k];
                map_.induction[k] *= Real(left_[i]);
            }
        }
    }

   private:
    template <int64_t cells>
    void add_rows(int64_t first, const Real *__restrict x, Real *__restrict y) const {
        const int64_t inputs = map_.inputs;
        const Real *__restrict weight = map_.weight + first * inputs;
        const Real *__restrict induction = map_.induction + first * inputs;
        Real sum[cells] = {}, ahead[cells];
        bool deferred = false;
        for (int64_t i = 0; i < cells; ++i) {
            ahead[i] = ahead_[first + i];
            deferred = deferred || ahead[i] != 0;
        }
        if (deferred) {
            for (int64_t j = 0; j < inputs; ++j)
                for (int64_t i = 0; i < cells; ++i)
                    sum[i] += (weight[i * inputs + j] + ahead[i] * induction[i * inputs + j]) * x[j];
        } else {
            for (int64_t j = 0; j < inputs; ++j)
                for (int64_t i = 0; i < cells; ++i) sum[i] += weight[i * inputs + j] * x[j];
        }
        for (int64_t i = 0; i < cells; ++i) y[first + i] += sum[i];
    }

    void learn_row(int64_t cell, Real drive, const Real *__restrict x) {
        Real *__restrict weight = map_.weight + cell * map_.inputs;
        Real *__restrict induction = map_.induction + cell * map_.inputs;
        const Real h = keep_ * left_[cell], ahead = ahead_[cell], eta = map_.eta;
        for (int64_t j = 0; j < map_.inputs; ++j) {
            const Real before = induction[j], after = h * before + drive * x[j];
            induction[j] = after;
            weight[j] += ahead * before + eta * after;
        }
        ahead_[cell] = 0, left_[cell] = 1;
    }

    void learn_with_decay(const Real *delta, const Real *x) {
        for (int64_t i = 0; i < map_.cells; ++i) {
            const Real drive = Real(map_.trace_rate * map_.scale) * delta[i];
            for (int64_t j = 0, k = i * map_.inputs; j < map_.inputs; ++j, ++k) {
                Real &weight = map_.weight[k], &induction = map_.induction[k];
                induction = Real(keep_) * induction + drive * x[j];
                weight += Real(map_.eta) * (induction - Real(map_.l2) * weight - Real(map_.l1) * sign(weight));
            }
        }
    }
};

// Rates of dendrites in place of their potentials, and f'.
template <typename Real>
void activate(bool retanh, int64_t cells, Real *__restrict v, Real *__restrict slope) {
    for (int64_t i = 0; i < cells; ++i) {
        const Real rate = !retanh ? v[i] : v[i] > 0 ? std::tanh(v[i]) : Real(0);
        slope[i] = retanh ? (v[i] > 0 ? 1 - rate * rate : Real(0)) : Real(1);
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
    std::vector<Real> p(n_p + 1, 1), g(n_g + 1, 1), pa(n_p), pb(n_p), ga(n_g), gb(n_g);
    std::vector<Real> slope_a(n_g), slope_b(n_g), unused(n_p), delta_p(n_p), delta_a(n_g), delta_b(n_g);
    Synapses<Real> hpc_apical(net.hpc_apical), mec_basal(net.mec_basal), recurrent(net.recurrent);
    Synapses<Real> right(net.right), left(net.left);
    std::copy(net.g, net.g + n_g, g.begin());
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

        for (int64_t i = 0; i < n_p; ++i) {
            pa[i] = loud * n_pa[i];
            pb[i] = features[i] + loud * n_pb[i];
        }
        hpc_apical.add_product(g.data(), pa.data());
        const Real error_p = gate(n_p, sleep_p, pa.data(), pb.data(), p.data(), delta_p.data(), unused.data());
        hpc_apical.learn(delta_p.data(), g.data(), sleep_p == 1);

        std::fill(ga.begin(), ga.end(), Real(0));
        std::fill(gb.begin(), gb.end(), Real(0));
        mec_basal.add_product(p.data(), gb.data());
        recurrent.add_product(g.data(), ga.data());
        if (net.conjunctive) {
            right.add_product(net.c, ga.data());
            left.add_product(net.c + n_g, ga.data());
        }
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
        if (net.conjunctive) {
            right.learn(delta_a.data(), net.c, sleep_g == 1);
            left.learn(delta_a.data(), net.c + n_g, sleep_g == 1);
            const Real speed = net.speed[t * net.speed_stride], felt = net.lag ? *net.u : speed;
            const Real threshold = net.threshold;
            for (int64_t i = 0; i < n_g; ++i) {
                net.c[i] = std::max(net.g[i] + felt - threshold, Real(0));
                net.c[n_g + i] = std::max(net.g[i] - felt - threshold, Real(0));
            }
            *net.u = speed;
        }
        std::copy(net.g, net.g + n_g, g.begin());
        std::copy(p.begin(), p.end() - 1, net.trace_p + t * net.trace_p_stride);
        std::copy(net.g, net.g + n_g, net.trace_g + t * net.trace_g_stride);
        net.trace_error[t * net.trace_error_stride] = error_p;
        net.trace_error[t * net.trace_error_stride + 1] = error_g;
    }
    std::copy(p.begin(), p.end() - 1, net.p);
    for (Synapses<Real> *map : {&hpc_apical, &mec_basal, &recurrent, &right, &left}) map->finish();
}

}  // namespace

extern "C" void hippocampus_float32(void *net) { run(*static_cast<Network<float> *>(net)); }
extern "C" void hippocampus_float64(void *net) { run(*static_cast<Network<double> *>(net)); }

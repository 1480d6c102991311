package faults

import (
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// All scenarios may wait at once; what runs at once the suite bounds.
	if err := flag.Set("test.parallel", "1000"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	testkit.Main(m)
}

// scenario is one kind of fault.
type scenario struct {
	name string
	run  func(*env)
	// long says that only the long form has it; rounds is how often the long form runs it, three times unless given.
	long   bool
	rounds int
	// alone says that it takes a server for itself, and needs no slot while it waits for that.
	alone bool
}

// scenarios are all there are. docs/guarantees.md names them.
var scenarios = [][]scenario{killScenarios, zombieScenarios, rebalanceScenarios, postgresScenarios, kafkaScenarios, networkScenarios, recordScenarios}

// TestFaults runs the scenarios: FAULTS=long all of them, FAULTS_RUN=regexp those it matches, FAULTS_SEED=n the same as another time.
func TestFaults(t *testing.T) {
	t.Parallel()
	chosen, err := regexp.Compile(os.Getenv("FAULTS_RUN"))
	require.NoError(t, err)
	s, seed, none := newSuite(t), seedOf(t), true
	t.Cleanup(func() { fmt.Println(&s.tally) })
	for _, group := range scenarios {
		for _, one := range group {
			if one.long && !long() || !chosen.MatchString(one.name) {
				continue
			}
			none = false
			rounds := 1
			if long() {
				rounds = max(3, one.rounds)
			}
			for n := range rounds {
				name := one.name
				if rounds > 1 {
					name = fmt.Sprintf("%s@%d", one.name, n)
				}
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					if !one.alone {
						s.slot(t)
					}
					one.run(newEnv(t, s, seed, one.name, uint64(n)))
				})
			}
		}
	}
	require.False(t, none, "FAULTS_RUN matches no scenario")
}

// long says that this is the long form.
func long() bool { return os.Getenv("FAULTS") == "long" }

// times is how often a scenario repeats its fault.
func times(short, inLong int) int {
	if long() {
		return inLong
	}
	return short
}

// seedOf is the seed of this run: FAULTS_SEED, or a new one.
func seedOf(t *testing.T) uint64 {
	seed := rand.Uint64N(1 << 32)
	if text := os.Getenv("FAULTS_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, "FAULTS_SEED")
	}
	t.Logf("FAULTS_SEED=%d", seed)
	return seed
}

// newEnv makes the environment of one scenario, whose choices depend on the run's seed and its name alone.
func newEnv(t *testing.T, s *suite, seed uint64, name string, round uint64) *env {
	t.Logf("FAULTS=%s FAULTS_SEED=%d FAULTS_RUN='^%s$'", os.Getenv("FAULTS"), seed, regexp.QuoteMeta(name))
	h := fnv.New64a()
	h.Write(fmt.Appendf(nil, "%d %s %d", seed, name, round))
	own := h.Sum64()
	s.tally.ran(name)
	return &env{T: t, seed: own, rng: rand.New(rand.NewPCG(own, own)), binary: fenced, suite: s}
}

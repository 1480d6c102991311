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

// atOnce is how many environments run at once: most of their time is spent waiting for sessions to expire.
const atOnce = "8"

func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", atOnce); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	testkit.Main(m)
}

// scenario is one kind of fault.
type scenario struct {
	name string
	run  func(*env)
	// long says that only the long form has it; rounds is how often the long form runs it, once unless given.
	long   bool
	rounds int
}

var all = [][]scenario{killScenarios, zombieScenarios}

// TestFaults runs the scenarios: FAULTS=long all of them, FAULTS_RUN=regexp those it matches, FAULTS_SEED=n the same as another time.
func TestFaults(t *testing.T) {
	long := os.Getenv("FAULTS") == "long"
	chosen, err := regexp.Compile(os.Getenv("FAULTS_RUN"))
	require.NoError(t, err)
	seed := seedOf(t)
	sum := &tally{}
	t.Cleanup(func() { fmt.Println(sum) })
	for _, scenarios := range all {
		for _, s := range scenarios {
			if s.long && !long || !chosen.MatchString(s.name) {
				continue
			}
			rounds := 1
			if long {
				rounds = max(1, s.rounds)
			}
			for n := range rounds {
				name := s.name
				if rounds > 1 {
					name = fmt.Sprintf("%s#%d", s.name, n)
				}
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					s.run(newEnv(t, seed, s.name, uint64(n), long, sum))
				})
			}
		}
	}
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
func newEnv(t *testing.T, seed uint64, name string, round uint64, long bool, sum *tally) *env {
	t.Logf("FAULTS_SEED=%d FAULTS_RUN='^%s$'", seed, regexp.QuoteMeta(name))
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s %d", seed, name, round)
	own := h.Sum64()
	sum.ran(name)
	return &env{T: t, long: long, seed: own, rng: rand.New(rand.NewPCG(own, own)), binary: fenced, tally: sum}
}

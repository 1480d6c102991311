package testkit

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNameIsLegalAndUnique(t *testing.T) {
	t.Run("with/a slash, "+strings.Repeat("ü", 300), func(t *testing.T) {
		first, second := Name(t), Name(t)
		require.NotEqual(t, first, second)
		require.Regexp(t, `^[a-zA-Z0-9-]{1,249}$`, first)
	})
}

func TestPromtool(t *testing.T) {
	output, err := Promtool(t, "# HELP a_total Help.\n# TYPE a_total counter\na_total 1\n")
	require.NoError(t, err, output)
	output, err = Promtool(t, "# HELP a Help.\n# TYPE a counter\na 1\n")
	require.Error(t, err)
	require.Contains(t, output, `counter metrics should have "_total" suffix`)
}

func TestMissingProgramNamesItsPackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := program("java", "default-jre-headless")
	require.ErrorContains(t, err, "java is not installed: apt-get install default-jre-headless")
}

func TestOnFreePorts(t *testing.T) {
	other := errors.New("another failure")
	tests := map[string]struct {
		failures  []error // of the attempts, nil when one succeeds
		wantCalls int
		wantError error
	}{
		"at once":           {[]error{nil}, 1, nil},
		"third time":        {[]error{errPortTaken, errPortTaken, nil}, 3, nil},
		"never":             {slices.Repeat([]error{errPortTaken}, 5), 5, errPortTaken},
		"no matter of port": {[]error{errPortTaken, other}, 2, other},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			calls := 0
			err := onFreePorts(func() error {
				calls++
				return test.failures[calls-1]
			})
			require.ErrorIs(t, err, test.wantError)
			require.Equal(t, test.wantCalls, calls)
		})
	}
}

func TestStartSaysThatThePortIsTaken(t *testing.T) {
	place, err := newPlace(t.Context(), "test")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, place.release()) })
	port, err := place.port()
	require.NoError(t, err)
	stranger, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address(port))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, stranger.Close()) })

	postgres := OwnPostgres(t, PostgresOptions{Version: 15})
	require.NoError(t, postgres.Stop())
	postgres.port = port
	require.ErrorIs(t, postgres.start(t.Context()), errPortTaken)

	kafka := OwnKafka(t, KafkaOptions{})
	require.NoError(t, kafka.Stop())
	kafka.ports[Plaintext] = port
	require.NoError(t, kafka.writeProperties())
	require.ErrorIs(t, kafka.start(t.Context()), errPortTaken)
}

func TestPortsAreReserved(t *testing.T) {
	place, err := newPlace(t.Context(), "test")
	require.NoError(t, err)
	port, err := place.port()
	require.NoError(t, err)
	home, err := testbed()
	require.NoError(t, err)
	file := filepath.Join(home, "ports", strconv.Itoa(port))
	_, err = tryLock(file)
	require.Error(t, err, "another process could take the port of a server that is down")
	require.NoError(t, place.release())
	lock, err := tryLock(file)
	require.NoError(t, err)
	require.NoError(t, lock.Close())
}

func TestSweepRemovesWhatTheDeadLeft(t *testing.T) {
	servers := t.TempDir()
	for _, name := range []string{"dead", "alive"} {
		require.NoError(t, os.MkdirAll(filepath.Join(servers, name, "data"), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(servers, name+".lock"), nil, 0o600))
	}
	lock, err := tryLock(filepath.Join(servers, "alive.lock"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, lock.Close()) })
	require.NoError(t, sweep(servers))
	left, err := filepath.Glob(filepath.Join(servers, "*"))
	require.NoError(t, err)
	require.Equal(t, []string{filepath.Join(servers, "alive"), filepath.Join(servers, "alive.lock")}, left)
}

// TestServersDieWithTheProcess runs this test binary again as a process that starts servers, leaves one
// paused, and is killed.
func TestServersDieWithTheProcess(t *testing.T) {
	const marker = "AUDITSINK_TESTKIT_VICTIM"
	if os.Getenv(marker) != "" {
		var pids []int
		for _, pause := range []bool{true, false} {
			server := OwnPostgres(t, PostgresOptions{Version: 15})
			backend := value[int](t, connect(t, server.URL("postgres")), "SELECT pg_backend_pid()")
			pids = append(pids, server.process.pid, backend)
			if pause {
				require.NoError(t, server.Pause())
			}
		}
		line, err := json.Marshal(pids)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(os.Getenv(marker), line, 0o600))
		<-t.Context().Done() // until killed
	}
	// In a test bed of its own, since another test process would sweep the folders of the dead, and a
	// Postgres without its folder ends some day by itself.
	place, err := newPlace(t.Context(), "victim")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, place.release()) })
	file := filepath.Join(place.dir, "pids")
	self, err := os.Executable()
	require.NoError(t, err)
	victim := exec.CommandContext(t.Context(), self, "-test.run=^TestServersDieWithTheProcess$")
	victim.Env = append(os.Environ(), marker+"="+file, "TMPDIR="+place.dir)
	require.NoError(t, victim.Start())
	var pids []int
	require.Eventually(t, func() bool {
		line, err := os.ReadFile(file)
		return err == nil && json.Unmarshal(line, &pids) == nil
	}, time.Minute, 50*time.Millisecond)
	for _, pid := range pids {
		require.Error(t, gone(pid), "it ran")
	}
	require.NoError(t, victim.Process.Kill())
	require.Error(t, victim.Wait())
	// Shorter than the minute in which a Postgres sees by itself that its folder is gone.
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	for _, pid := range pids {
		require.NoError(t, poll(ctx, 10*time.Millisecond, func() error { return gone(pid) }))
	}
}

package indexes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"auditsink/internal/testkit"
)

// The test binary is also a command to be killed, with failpoints, told what to do by these variables.
const (
	childURL = "INDEXES_CHILD_URL"
	childTo  = "INDEXES_CHILD_TO"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(childURL); url != "" {
		if err := childRun(context.Background(), url, os.Getenv(childTo)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	testkit.Main(m)
}

func childRun(ctx context.Context, url, to string) error {
	profile, build, _ := strings.Cut(to, ", ")
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	return errors.Join(Change{To: Choice{Profile(profile), Build(build)}, Grace: time.Hour, Now: now}.Run(ctx, conn), conn.Close(ctx))
}

// failing builds the test binary with failpoints, once.
var failing = sync.OnceValues(func() (string, error) {
	tests, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(tests), "indexes-failpoints.test")
	out, err := osexec.CommandContext(context.Background(), "go", "test", "-c", "-tags", "failpoints", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the tests with failpoints: %w\n%s", err, out)
	}
	return path, nil
})

// killed makes a change in a process of its own, which dies at a failpoint.
func killed(t *testing.T, db string, to Choice, failpoint string) {
	t.Helper()
	path, err := failing()
	require.NoError(t, err)
	cmd := osexec.CommandContext(t.Context(), path)
	cmd.Env = append(os.Environ(), childURL+"="+db, childTo+"="+to.String(), "FAILPOINT="+failpoint)
	said := &bytes.Buffer{}
	cmd.Stderr = said
	var exit *osexec.ExitError
	require.ErrorAs(t, cmd.Run(), &exit, "%s: it ended without having come there", failpoint)
	status, ok := exit.Sys().(syscall.WaitStatus)
	require.True(t, ok && status.Signaled() && status.Signal() == syscall.SIGKILL, "%v\n%s", exit, said)
}

// TestChangeIsKilled: SIGKILL at each kind of step of a real process, beside a writer, and the same change, or one to elsewhere, finishes.
func TestChangeIsKilled(t *testing.T) {
	_, err := failing()
	require.NoError(t, err)
	versions(t, func(t *testing.T, db string) {
		conn := world(t, db)
		stop := writing(t, db)
		for _, c := range []struct {
			to         Choice
			failpoints []string // one after the other, each of the same change
		}{
			{Choice{Lean, Immediate}, []string{"indexes.choose.before=kill@1", "indexes.choose.after=kill@1", "indexes.build.before=kill@2", "indexes.build.after=kill@3", "indexes.create.before=kill@1", "indexes.locked.before-commit=kill@1", "indexes.create.after=kill@1", "indexes.drop.before=kill@2", "indexes.drop.after=kill@1"}},
			{Choice{Full, Deferred}, []string{"indexes.build.after=kill@4", "indexes.drop.after=kill@2"}},
			{Choice{Lean, Deferred}, []string{"indexes.build.before=kill@1", "indexes.clear.before=kill@2", "indexes.clear.after=kill@2"}},
			{Choice{Full, Immediate}, []string{"indexes.create.after=kill@3"}},
		} {
			for _, f := range c.failpoints {
				killed(t, db, c.to, f)
			}
			run(t, db, c.to)
			requireExactly(t, conn, c.to)
		}
		// Ended half way, another choice leads elsewhere from there.
		killed(t, db, choices[3], "indexes.drop.after=kill@5")
		run(t, db, choices[1])
		requireExactly(t, conn, choices[1])
		require.Positive(t, stop())
	})
}

// TestChangeIsKilledInABuild: the process dies while the server builds for it, which leaves an invalid index.
func TestChangeIsKilledInABuild(t *testing.T) {
	_, err := failing()
	require.NoError(t, err)
	versions(t, func(t *testing.T, db string) {
		conn := world(t, db)
		reader := testkit.Connect(t, db)
		testkit.Exec(t, reader, `BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM audit_log`)
		path, err := failing()
		require.NoError(t, err)
		cmd := osexec.CommandContext(t.Context(), path)
		cmd.Env = append(os.Environ(), childURL+"="+db, childTo+"=lean, immediate")
		require.NoError(t, cmd.Start())
		building := func() int64 {
			return testkit.Column[int64](t, conn, `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'virtualxid' AND query LIKE 'CREATE INDEX CONCURRENTLY%'`)[0]
		}
		testkit.Eventually(t, patient, "it builds", func() bool { return building() == 1 })
		require.NoError(t, cmd.Process.Kill())
		require.Error(t, cmd.Wait())
		testkit.Exec(t, conn, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%' AND pid <> pg_backend_pid()`)
		testkit.Eventually(t, patient, "the build is ended", func() bool { return building() == 0 })
		require.NotEmpty(t, testkit.Column[string](t, conn, `SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid`))
		testkit.Exec(t, reader, `COMMIT`)
		run(t, db, choices[1])
		requireExactly(t, conn, choices[1])
	})
}

package faults

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
)

// worker is a worker of a scenario.
type worker struct {
	*process
	env *env
	// doomed says that it may end by SIGKILL, and mayFail that it may end with exit code 1.
	doomed, mayFail bool
	// told says that it was asked to end: asked twice it would end at once.
	told bool
}

// worker starts a worker.
func (e *env) worker() *worker { return e.workerWith(nil, "") }

// armed starts a worker that kills or stops itself when a failpoint comes for the nth time.
func (e *env) armed(failpoint, action string, n int) *worker {
	w := e.workerWith(nil, fmt.Sprintf("%s=%s@%d", failpoint, action, n))
	w.doomed = action == "kill"
	return w
}

// workerWith starts a worker with some settings of its own.
func (e *env) workerWith(s settings, failpoint string) *worker { return e.program(s, failpoint, "run") }

// program starts a worker or another command, which has to end by itself.
func (e *env) program(s settings, failpoint string, args ...string) *worker {
	e.Helper()
	path, err := e.binary()
	require.NoError(e, err)
	p, err := startProcess(path, e.workerSettings().with(s), failpoint, args...)
	require.NoError(e, err)
	w := &worker{process: p, env: e}
	e.workers = append(e.workers, w)
	e.Cleanup(func() {
		if err := w.process.kill(); err != nil {
			e.Errorf("%v", err)
		}
		if e.Failed() {
			e.Logf("%s %d (%s):\n%s", args[0], w.pid, failpoint, w.log.tail())
		}
	})
	return w
}

// owner is how the worker signs audit_lane.
func (w *worker) owner() string {
	host, err := os.Hostname()
	require.NoError(w.env, err)
	return fmt.Sprintf("%s/%d", host, w.pid)
}

// owned is how many lanes it has claimed and still holds in Postgres, or -1.
func (w *worker) owned() int64 {
	return w.env.number(`SELECT count(*) FROM audit_lane WHERE owner = $1`, w.owner())
}

// awaitLanes waits until it owns at least n lanes.
func (w *worker) awaitLanes(n int64) {
	w.env.Helper()
	w.env.eventually("it owns lanes", func() bool {
		require.True(w.env, w.running() || w.doomed, "it ended too early: %s", w.log.tail())
		return w.owned() >= n || !w.running()
	})
}

// awaitConsumed waits until it has taken in so many records.
func (w *worker) awaitConsumed(n float64) {
	w.env.Helper()
	w.env.eventually("it has taken records in", func() bool { return w.metric(w.env.Context(), "records_consumed_total", "") >= n || !w.running() })
}

// kill kills it, as the kernel does with one that takes too much memory.
func (w *worker) kill() {
	w.env.Helper()
	w.doomed = true
	require.NoError(w.env, w.process.kill())
	w.env.suite.tally.killed()
}

// died waits until a failpoint has killed it.
func (w *worker) died() {
	w.env.Helper()
	w.env.eventually("it is killed at its failpoint", func() bool { return !w.running() })
	require.True(w.env, w.killed(), "it ended otherwise: %v\n%s", w.state, w.log.tail())
	w.env.suite.tally.killed()
}

// freeze stops it where it is, as a machine does that swaps.
func (w *worker) freeze() {
	w.env.Helper()
	require.NoError(w.env, w.signal(syscall.SIGSTOP))
	w.froze()
}

// froze waits until it is stopped, by a failpoint or by freeze.
func (w *worker) froze() {
	w.env.Helper()
	w.env.eventually("it is stopped", func() bool {
		require.True(w.env, w.running(), "it ended instead: %s", w.log.tail())
		return w.frozen()
	})
	w.env.suite.tally.stopped()
}

// resume lets it go on.
func (w *worker) resume() {
	w.env.Helper()
	require.NoError(w.env, w.signal(syscall.SIGCONT))
}

// terminate asks it to end.
func (w *worker) terminate() {
	if w.told {
		return
	}
	w.told = true
	if err := w.signal(syscall.SIGTERM); err != nil {
		w.env.Errorf("%v", err)
	}
}

// stop asks it to end and waits for it. endedWell looks how it did. It may be called from any goroutine.
func (w *worker) stop() {
	w.terminate()
	select {
	case <-w.done:
	case <-time.After(patience):
		w.env.Errorf("worker %d doesn't end: %s", w.pid, w.log.tail())
	}
}

// endedWell requires that it ended with exit code 0, or as it was doomed to.
func (w *worker) endedWell() {
	w.env.Helper()
	if w.running() || w.state.ExitCode() != 0 && (!w.doomed || !w.killed()) && (!w.mayFail || w.state.ExitCode() != 1) {
		w.env.Errorf("worker %d ended badly: %v\n%s", w.pid, w.state, w.log.tail())
	}
}

// ready reports whether it calls itself ready, and what it says.
func (w *worker) ready() (bool, string) {
	status, body, err := w.page(w.env.Context(), "/readyz")
	if err != nil {
		return false, err.Error()
	}
	return status == http.StatusOK, body
}

// awaitReady waits until it calls itself ready.
func (w *worker) awaitReady() {
	w.env.Helper()
	w.env.eventually("it is ready", func() bool { ok, _ := w.ready(); return ok })
}

// awaitSaid waits until its log contains a text.
func (w *worker) awaitSaid(text string) {
	w.env.Helper()
	w.env.eventually("it says "+text, func() bool { return w.said(text) || !w.running() })
	require.True(w.env, w.said(text), "it ended without saying %q", text)
}

func (w *worker) said(text string) bool { return strings.Contains(w.log.String(), text) }

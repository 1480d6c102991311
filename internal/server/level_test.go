package server_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"auditsink/internal/server"
)

// TestLogLevel: it acts at once, whichever way it changes the log tells by whom, and what isn't a level changes nothing.
func TestLogLevel(t *testing.T) {
	level := zap.NewAtomicLevelAt(zapcore.InfoLevel)
	core, log := observer.New(level)
	logger := zap.New(core)
	b := newBed(t, setup{server: func(o *server.Options) { o.Level, o.Log = &level, logger }})
	put := func(token, body string) answer {
		t.Helper()
		r := b.request(http.MethodPut, token, "/v1/log-level", nil)
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		return b.do(r)
	}
	require.JSONEq(t, `{"level":"info"}`, b.get(tokenAll, "/v1/log-level").body)
	for _, c := range []struct {
		to    string
		level zapcore.Level
	}{{"debug", zapcore.DebugLevel}, {"error", zapcore.ErrorLevel}, {"warn", zapcore.WarnLevel}, {"info", zapcore.InfoLevel}} {
		from := level.Level()
		a := put(tokenAll, `{"level":"`+c.to+`"}`)
		require.Equal(t, http.StatusOK, a.status)
		require.JSONEq(t, `{"level":"`+c.to+`"}`, a.body)
		require.JSONEq(t, a.body, b.get(tokenAll, "/v1/log-level").body)
		require.Equal(t, c.level, level.Level())
		require.Equal(t, c.level == zapcore.DebugLevel, logger.Core().Enabled(zapcore.DebugLevel))
		said := log.TakeAll()
		require.Len(t, said, 1, c.to)
		require.Equal(t, map[string]any{"from": from.String(), "to": c.to, "token": "all"}, said[0].ContextMap())
	}
	require.Equal(t, http.StatusOK, put(tokenAll, `{"level":"info"}`).status)
	require.Empty(t, log.TakeAll(), "nothing changed")
	for _, body := range []string{``, `{}`, `"debug"`, `{"level":""}`, `{"level":"DEBUG"}`, `{"level":"fatal"}`, `{"level":"dpanic"}`, `{"level":1}`, `{"level":"debug","more":1}`, `{"level":"debug"}{}`, `level=debug`, `{"level":"debug"` + strings.Repeat(" ", 2000) + `}`} {
		require.Equal(t, http.StatusBadRequest, put(tokenAll, body).status, body)
	}
	require.Equal(t, http.StatusForbidden, put(tokenA, `{"level":"debug"}`).status)
	require.Equal(t, http.StatusUnauthorized, put("", `{"level":"debug"}`).status)
	require.Equal(t, zapcore.InfoLevel, level.Level())
}

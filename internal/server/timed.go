package server

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"go.uber.org/zap"
)

// stall is how long a client may take to read the next 64 KiB of an answer, and bodyTime how long to send what it sends.
const (
	stall    = 30 * time.Second
	bodyTime = 5 * time.Second
)

// timed bounds how long a client may take, so that nobody, known here or not, keeps a connection and what it holds for as long as they like.
func timed(serve http.Handler, stall time.Duration, log *zap.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		if r.ContentLength != 0 { // also where nobody wants it: package http reads the rest of what they send
			if err := control.SetReadDeadline(time.Now().Add(bodyTime)); err != nil {
				log.Error("set the deadline of a request", zap.Error(err))
			}
		}
		serve.ServeHTTP(&timedWriter{w, control, stall}, r)
	})
}

// timedWriter bounds how long each part of an answer may take, so that who stops reading is cut off.
type timedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
}

// Write writes in parts of 64 KiB, each with a deadline of its own.
func (w *timedWriter) Write(p []byte) (written int, err error) {
	for part := range slices.Chunk(p, 64<<10) {
		if err := w.control.SetWriteDeadline(time.Now().Add(w.stall)); err != nil {
			return written, fmt.Errorf("set the deadline of an answer: %w", err)
		}
		n, err := w.ResponseWriter.Write(part)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// Unwrap is for package http, which looks for what else the writer can do.
func (w *timedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

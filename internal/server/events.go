package server

import (
	"context"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"auditsink/internal/query"
)

// mediaTypes are those of the formats.
var mediaTypes = map[query.Format]string{
	query.JSON:   "application/json",
	query.NDJSON: "application/x-ndjson",
	query.CSV:    "text/csv; charset=utf-8; header=present",
}

// errNoReader is a worker that doesn't read.
func errNoReader() error {
	return newProblem(http.StatusServiceUnavailable, "this worker has no database to read").with("Retry-After", "5")
}

// events answers a page of events, or streams all of a range.
func (a *api) events(w http.ResponseWriter, r *http.Request, c caller) error {
	values, err := parameters(r, query.Parameters()...)
	if err != nil {
		return err
	}
	format, err := accepted(r.Header.Values("Accept"))
	if err != nil && !values.Has("format") {
		return err
	}
	q, err := query.ParseQuestion(values, format, time.Now())
	if err != nil {
		return err
	}
	if a.Reader == nil {
		return errNoReader()
	}
	if q.Format != query.JSON {
		return a.export(w, r, c, q)
	}
	answer, err := a.Reader.Ask(freshness(r), c.scope, q)
	if err != nil {
		return err
	}
	if answer.Next != nil {
		// The next page is of the same range, whatever the time is then. It isn't counted again.
		values.Set("from", answer.From.Format(time.RFC3339Nano))
		values.Set("to", answer.To.Format(time.RFC3339Nano))
		values.Set("cursor", *answer.Next)
		values.Del("count")
		w.Header().Set("Link", fmt.Sprintf(`</v1/events?%s>; rel="next"`, values.Encode()))
	}
	return writeJSON(w, mediaTypes[query.JSON], http.StatusOK, answer)
}

// event answers one event. One that isn't in the caller's scope is looked for and not found in the same way as one that isn't there.
func (a *api) event(w http.ResponseWriter, r *http.Request, c caller) error {
	values, err := parameters(r, "timestamp")
	if err != nil {
		return err
	}
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		return &query.InvalidError{Parameter: "id", Problem: "want the whole number that an event has as id"}
	}
	var at time.Time
	text, err := query.Single(values, "timestamp")
	if err != nil {
		return err
	}
	if text != "" {
		if at, err = query.ParseInstant(text); err != nil {
			return &query.InvalidError{Parameter: "timestamp", Problem: err.Error()}
		}
	}
	if a.Reader == nil {
		return errNoReader()
	}
	e, err := a.Reader.Event(freshness(r), c.scope, id, at)
	if err != nil {
		return err
	}
	return writeJSON(w, mediaTypes[query.JSON], http.StatusOK, e)
}

// export streams a range. Once a part is on its way, a failure can be told in one way only: the connection breaks before the end of the answer.
func (a *api) export(w http.ResponseWriter, r *http.Request, c caller, q query.Question) error {
	if !r.ProtoAtLeast(1, 1) {
		return newProblem(http.StatusHTTPVersionNotSupported, "an export wants HTTP/1.1 or later: earlier, its end can't be told from a broken connection")
	}
	select {
	case a.exports <- struct{}{}:
		defer func() { <-a.exports }()
	default:
		return newProblem(http.StatusServiceUnavailable, fmt.Sprintf("%d exports are under way already: ask again later", cap(a.exports))).with("Retry-After", "10")
	}
	out := &begun{w: w}
	header := w.Header()
	header.Set("Content-Type", mediaTypes[q.Format])
	header.Set("Content-Disposition", `attachment; filename="audit-events.`+string(q.Format)+`"`)
	if r.Method == http.MethodHead {
		return nil
	}
	start := time.Now()
	events, err := a.Reader.Stream(r.Context(), c.scope, q, out)
	if err != nil && !out.begun {
		header.Del("Content-Disposition")
		return err
	}
	fields := []zap.Field{zap.String("token", c.name), zap.String("format", string(q.Format)), zap.Int64("events", events), zap.Duration("took", time.Since(start))}
	if err != nil {
		a.Log.Warn("an export was broken off", append(fields, zap.Error(err))...)
		panic(http.ErrAbortHandler) // package http breaks the connection, and says nothing
	}
	a.Log.Info("exported", fields...)
	return nil
}

// begun passes on what is written, and knows whether anything was.
type begun struct {
	w     http.ResponseWriter
	begun bool
}

func (b *begun) Write(p []byte) (int, error) {
	b.begun = true
	return b.w.Write(p)
}

// freshness is the context of a read, which passes over what is cached where the request asks for that.
func freshness(r *http.Request) context.Context {
	for _, field := range r.Header.Values("Cache-Control") {
		for directive := range strings.SplitSeq(field, ",") {
			switch strings.ToLower(strings.TrimSpace(directive)) {
			case "no-cache", "no-store", "max-age=0":
				return query.Fresh(r.Context())
			}
		}
	}
	return r.Context()
}

// accepted chooses the format by the Accept headers: the one that is liked best, JSON where they say nothing else.
func accepted(headers []string) (query.Format, error) {
	if len(headers) == 0 {
		return query.JSON, nil
	}
	var best query.Format
	most := 0.0
	for part := range strings.SplitSeq(strings.Join(headers, ","), ",") {
		mediaType, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue // a range that can't be read accepts nothing
		}
		weight := 1.0
		if q, ok := params["q"]; ok {
			if weight, err = strconv.ParseFloat(q, 64); err != nil {
				continue
			}
		}
		var format query.Format
		switch mediaType {
		case "application/json", "application/*", "*/*":
			format = query.JSON
		case "application/x-ndjson", "application/ndjson":
			format = query.NDJSON
		case "text/csv", "text/*":
			format = query.CSV
		default:
			continue
		}
		if weight > most {
			best, most = format, weight
		}
	}
	if best == "" {
		return "", newProblem(http.StatusNotAcceptable, "events come as application/json, application/x-ndjson or text/csv")
	}
	return best, nil
}

package main

import (
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// Of the lines of a second that have the same level and text, the first floodFirst are logged, and each floodEach-th after that.
	floodFirst, floodEach = 100, 100
	floodTick             = time.Second
)

// flood thins out what is logged too often, and tells how much it left out: no line goes unseen and uncounted.
type flood struct {
	core zapcore.Core // where it goes, unthinned

	mu   sync.Mutex // guards left
	left map[floodLine]int
}

// floodLine is what makes lines alike.
type floodLine struct {
	level zapcore.Level
	text  string
}

// thin is the option of a logger that does so.
func thin() zap.Option {
	return zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		f := &flood{core: core, left: map[floodLine]int{}}
		return zapcore.NewSamplerWithOptions(core, floodTick, floodFirst, floodEach, zapcore.SamplerHook(f.note))
	})
}

// note counts what is left out. The first of it is told of with the others a moment later.
func (f *flood) note(e zapcore.Entry, decision zapcore.SamplingDecision) {
	if decision&zapcore.LogDropped == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.left) == 0 {
		time.AfterFunc(floodTick, f.tell)
	}
	f.left[floodLine{e.Level, e.Message}]++
}

func (f *flood) tell() {
	f.mu.Lock()
	left := f.left
	f.left = map[floodLine]int{}
	f.mu.Unlock()
	for line, n := range left {
		entry := zapcore.Entry{Level: line.level, Time: time.Now(), Message: "lines of the log were left out, since so many are alike"}
		_ = f.core.Write(entry, []zapcore.Field{zap.String("of", line.text), zap.Int("lines", n)}) // there is nowhere else to say it
	}
}

package kafka

import (
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// logger writes the client's log to ours.
type logger struct{ zap *zap.SugaredLogger }

func newLogger(log *zap.Logger) kgo.Logger {
	return logger{log.Named("kafka").WithOptions(zap.WithCaller(false), zap.AddStacktrace(zapcore.InvalidLevel)).Sugar()}
}

// Level is the level the client need not go below.
func (l logger) Level() kgo.LogLevel {
	for _, level := range []kgo.LogLevel{kgo.LogLevelDebug, kgo.LogLevelInfo, kgo.LogLevelWarn, kgo.LogLevelError} {
		if l.zap.Desugar().Core().Enabled(zapLevel(level)) {
			return level
		}
	}
	return kgo.LogLevelNone
}

// Log writes one message. What it carries names brokers, topics, offsets and errors, never a record's content.
func (l logger) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	l.zap.Logw(zapLevel(level), msg, keyvals...)
}

// zapLevel is our level for the client's. What it calls information (each request for metadata, each session) helps
// who looks for a fault, and is noise otherwise: to us it is debug.
func zapLevel(level kgo.LogLevel) zapcore.Level {
	switch level {
	case kgo.LogLevelError:
		return zapcore.ErrorLevel
	case kgo.LogLevelWarn:
		return zapcore.WarnLevel
	case kgo.LogLevelInfo, kgo.LogLevelDebug:
		return zapcore.DebugLevel
	default:
		return zapcore.InvalidLevel
	}
}

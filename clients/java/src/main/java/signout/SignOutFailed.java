package signout;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RequestInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.Map;

/** Why a user was not signed out, or perhaps not: the outcome "unknown" means that it may have happened. */
public final class SignOutFailed extends Exception {
    private static final long serialVersionUID = 1;

    /** What to do about a failure. */
    public enum Advice {
        /** Another attempt may help. */
        RETRY,
        /** The caller has to know. */
        RAISE,
        /** Somebody has to act, and the caller has to know. */
        ALERT
    }

    public final Status.Code code;
    /** Empty if it was the gRPC library that failed. */
    public final String reason;
    public final String requestId;
    /** Null if the answer has none. */
    public final transient Duration retryAfter;
    public final transient List<String> fields;
    public final transient Map<String, String> metadata;

    SignOutFailed(Throwable error) {
        super(error.getMessage(), error);
        code = Status.fromThrowable(error).getCode();
        var info = ErrorInfo.getDefaultInstance();
        var request = RequestInfo.getDefaultInstance();
        var bad = BadRequest.getDefaultInstance();
        RetryInfo retry = null;
        try {
            // An answer without details gives an empty list.
            for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
                if (detail.is(ErrorInfo.class)) {
                    info = detail.unpack(ErrorInfo.class);
                } else if (detail.is(RetryInfo.class)) {
                    retry = detail.unpack(RetryInfo.class);
                } else if (detail.is(RequestInfo.class)) {
                    request = detail.unpack(RequestInfo.class);
                } else if (detail.is(BadRequest.class)) {
                    bad = detail.unpack(BadRequest.class);
                }
            }
        } catch (InvalidProtocolBufferException malformed) {
            addSuppressed(malformed);
        }
        reason = info.getReason();
        metadata = info.getMetadataMap();
        requestId = request.getRequestId();
        var delay = retry == null ? null : retry.getRetryDelay();
        retryAfter = delay == null ? null : Duration.ofSeconds(delay.getSeconds(), delay.getNanos());
        fields = bad.getFieldViolationsList().stream().map(BadRequest.FieldViolation::getField).toList();
    }

    public String fault() {
        return metadata.getOrDefault("fault", "");
    }

    /** Without details, only UNAVAILABLE says that another attempt may help. */
    public boolean retryable() {
        return reason.isEmpty() ? code == Status.Code.UNAVAILABLE : metadata.get("retryable").equals("true");
    }

    public String outcome() {
        return metadata.getOrDefault("outcome", "unknown");
    }

    public Advice does() {
        if (code == Status.Code.DEADLINE_EXCEEDED || code == Status.Code.CANCELLED) {
            return Advice.RAISE; // nobody waits any more; a new call is a new decision
        }
        if (retryable()) {
            return Advice.RETRY;
        }
        return fault().equals("sidecar") || fault().equals("aws") ? Advice.ALERT : Advice.RAISE;
    }
}
